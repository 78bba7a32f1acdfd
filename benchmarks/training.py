"""Pictures trained per second, by method and size of the input: one update on made-up pictures, references in the batch included."""

from __future__ import annotations

import sys

import torch

from cers.inference.model import quick_in_bfloat16
from cers.network.model import CersNet, NetworkConfig
from cers.training.losses import dice_bce

from .common import median_ms, options, peak_mb, report

GROUPS, MEMBERS = 4, 5


def trainer(size: int, references: bool, precision: str):
    """A function that does one update on GROUPS x MEMBERS pictures of size x size."""
    torch.manual_seed(0)
    net = CersNet(NetworkConfig()).to(memory_format=torch.channels_last).train()
    n = GROUPS * MEMBERS
    x, y = torch.randn(n, 1, size, size), torch.zeros(n, 1, size, size)
    y[:, :, size // 3 : size // 2, size // 3 : size // 2] = 1
    rationale = torch.nn.functional.normalize(torch.randn(n, net.config.rationale), dim=1)
    index = torch.tensor([[q // MEMBERS * MEMBERS + (q + k) % MEMBERS for k in range(1, MEMBERS)] for q in range(n)])
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)

    def update() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            encoded = net.encode(x)
            plain = net.decode_plain(encoded)
            loss = dice_bce(plain.float(), y)
            if references:
                stock = net.references(encoded, y, rationale)
                fused, _ = net.decode_evidence(encoded, plain.float().sigmoid(), rationale, stock.gather(index))
                loss = loss + dice_bce(fused.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return update


def main() -> int:
    parser = options(__doc__, runs=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 192, 224])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    rows = []
    for size in given.sizes:
        for precision in ("float32", "bfloat16")[: 1 + quick_in_bfloat16()]:
            found = []
            for references in (False, True):
                update = trainer(size, references, precision)
                update()
                found.append(1000 * GROUPS * MEMBERS / median_ms(update, given.runs))
            rows.append((f"{size} x {size}, {precision}", *found))
    report("Pictures trained per second", ["input", "plain decoder only", "both decoders, four references"], rows, given, peak_mb=peak_mb())
    return 0


if __name__ == "__main__":
    sys.exit(main())
