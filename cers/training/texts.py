"""Short clinical texts for training, so that a query may come with one and needs none."""

from __future__ import annotations

import numpy as np
import torch

from ..rationale import TextEmbedder

FORMS = 3


def clinical_text(row: dict, form: int) -> str:
    """A short clinical question. Only what a referrer may know: the suspected kind, never count, size or place."""
    kind = row.get("diagnosis") or "tumour"
    return (f"Contrast-enhanced T1 MR of the head, {row.get('plane') or 'any'} plane.", f"Suspected {kind}.", f"Follow-up, known {kind}.")[
        form
    ]


def token_table(table: list[dict], embedder: TextEmbedder) -> dict[str, torch.Tensor]:
    """Tokens (t, r) of every text that the rows of a table can have."""
    texts = sorted({clinical_text(row, form) for row in table for form in range(FORMS)})
    return {t: torch.from_numpy(embedder.encode_tokens(t)) for t in texts}


def text_batch(
    tokens: dict[str, torch.Tensor], rows: list[dict], share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens (n, t, r), padded, and present (n, t) bool; a ``share`` of the rows has a text."""
    dimension = next(iter(tokens.values())).shape[1]
    length = max(len(t) for t in tokens.values())
    out, present = torch.zeros(len(rows), length, dimension), torch.zeros(len(rows), length, dtype=torch.bool)
    some, forms = rng.random(len(rows)) < share, rng.integers(FORMS, size=len(rows))
    for n, row in enumerate(rows):
        if some[n]:
            t = tokens[clinical_text(row, forms[n])]
            out[n, : len(t)], present[n, : len(t)] = t, True
    return out, present
