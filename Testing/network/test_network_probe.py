"""The linear probe fitted to a query's references."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from nets import Scene, make

from cers.errors import ModelError
from cers.network import probe
from cers.network.evidence import alike, moments_of, unknown

SIZE = (16, 16)


def lit(k: int = 4, corners=None, **settings) -> Scene:
    """Pictures that are bright where the lesion is; so are the queries, whose lesion lies at (40, 40)."""
    scene = Scene(make(**{"probe": 8.0, **settings}), k=k)
    scene.masks = torch.zeros_like(scene.masks)
    for n in range(len(scene.masks)):
        top, left = (5 + 9 * (n % k), 8) if corners is None else corners
        scene.masks[n, :, top : top + 14, left : left + 14] = 1
    scene.reference_images = 0.1 * scene.reference_images + 3 * scene.masks[:, :1]
    scene.x = 0.1 * scene.x
    scene.x[:, :, 40:54, 40:54] += 3
    return scene


def answer(scene: Scene, counted=None, valid=None, **changed) -> torch.Tensor:
    r = scene.references()
    valid = torch.ones(r.missed.shape[:2], dtype=torch.bool) if valid is None else valid
    counted = valid.float() if counted is None else counted
    given = {"second": r.probed_second, "first": r.probed_first, "together": alike(r.masks, counted), **changed}
    features = scene.net.encode(scene.x).features
    return probe.answer(features, SIZE, counted=counted, **given).unflatten(-1, SIZE)


def test_it_is_a_weighted_ridge_regression():
    torch.manual_seed(0)
    features = [torch.randn(3, c, s, s) for c, s in ((6, 32), (9, 8))]
    x, masks = probe.seen(features, SIZE), torch.zeros(3, 1, *SIZE)
    for n in range(3):
        masks[n, 0, 2 + n : 8 + n, 3:9] = 1
    counted, together = torch.tensor([[1.0, 0.9]]), torch.full((1, 1, 2), sum(probe.ONE_PLACE) / 2)  # half of what counts whole
    second, first = moments_of(x[:2], masks[:2])
    got = probe.answer([f[2:] for f in features], SIZE, second[None], first[None], counted, together)

    def halved(seen) -> np.ndarray:
        seen = seen.numpy().astype(float)
        seen[:, probe.WIDTH : -1] *= 0.5  # the spots
        return seen

    rows, targets = [], []
    for n, share in enumerate((counted / counted.sum())[0].tolist()):  # inside and outside count alike, however small the lesion
        inside = masks[n, 0].flatten().numpy() > 0
        weight = np.where(inside, 1 / (inside.sum() + 1e-3), 1 / ((~inside).sum() + 1e-3)) * share
        rows.append(np.sqrt(weight)[:, None] * halved(x[n]))
        targets.append(np.sqrt(weight) * np.where(inside, 1.0, -1.0))
    d = x.shape[-1]
    rows.append(np.sqrt(probe.RIDGE) * np.eye(d))
    targets.append(np.zeros(d))
    fitted = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
    heard = (1.81 / 1.9 - 0.8) / 0.2 * (1.9**2 / 1.81 - 1) / 2  # two of them, one of which does not quite count
    assert np.abs(got[0, 0].numpy() - heard * ((halved(x[2]) @ fitted).clip(-2, 2) - probe.EVEN)).max() < 1e-3
    assert 0.5 < x[..., : probe.WIDTH].norm(dim=-1).mean() < 1.5, "the projection keeps lengths"


def test_one_picture_several_times_is_looked_at_once():
    one = [torch.randn(1, c, s, s) for c, s in ((6, 32), (9, 8))]
    several, apart = ([turn(f, (3, 1, 1, 1)) for f in one] for turn in (lambda f, n: f.expand(n[0], *f.shape[1:]), torch.Tensor.repeat))
    seen = probe.seen(several, SIZE)
    assert seen.stride(0) == 0 and torch.equal(seen, probe.seen(apart, SIZE))
    second, first = (m[:, None] for m in moments_of(seen, torch.rand(3, 1, *SIZE).round()))
    found, expected = (probe.answer(f, SIZE, second, first, torch.ones(3, 1), torch.ones(3, 1, 1)) for f in (several, apart))
    assert found.shape == (3, 1, 256) and torch.allclose(found, expected, atol=1e-5)


def test_it_finds_by_look_what_lies_elsewhere():
    found = answer(lit())[:, 0]
    assert (found[:, 11:13, 11:13].mean((1, 2)) > found.mean((1, 2)) + 0.3).all()


def test_it_knows_the_place_where_nothing_is_to_be_seen():
    scene = lit(corners=(5, 40))
    scene.x = scene.reference_images[: len(scene.x)] * 0
    found = answer(scene)[:, 0]
    assert (found[:, 2:4, 11:13].amin((1, 2)) > found[:, 10:].amax((1, 2)) + 0.2).all()


def test_masks_that_lie_here_and_there_tell_it_no_place():
    scene = lit()
    scene.masks *= 0
    for n, (top, left) in enumerate(((4, 4), (4, 44), (44, 4), (24, 24))):
        scene.masks[n::4, :, top : top + 14, left : left + 14] = 1
    apart, told = answer(scene), answer(scene, together=torch.full((2, 1, 4), 0.4))
    assert torch.equal(apart, answer(scene, together=torch.zeros(2, 1, 4))) and not torch.allclose(apart, told, atol=0.05)
    assert torch.equal(answer(lit(corners=(5, 40))), answer(lit(corners=(5, 40)), together=torch.ones(2, 1, 4))), "all in one place"


def test_it_is_silent_without_references_that_bear_each_other_out():
    scene = lit()
    assert answer(scene).any()
    assert not answer(scene, counted=torch.zeros(2, 4)).any()
    assert not answer(scene, counted=torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(2, -1)).any(), "no other bears it out"
    assert not answer(scene, counted=torch.full((2, 4), 0.5)).any(), "they half contradict each other"
    most = answer(scene, counted=torch.tensor([[1.0, 1.0, 1.0, 0.2]]).expand(2, -1))
    assert 0 < most.abs().max() < answer(scene, counted=torch.tensor([[1.0, 1.0, 1.0, 0.9]]).expand(2, -1)).abs().max()
    scene.masks *= 0
    assert torch.isfinite(answer(scene)).all()
    scene.sure = False
    without = make(place=0.0, probe=0.0)
    with_probe = scene.run()[1]
    scene.net = without
    assert torch.equal(with_probe, scene.run()[1]), "empty masks say nothing"


@pytest.mark.parametrize("labels", [("lesion",), ("core", "edema")])
def test_order_and_what_fills_an_invalid_place_do_not_matter(labels):
    scene = lit(labels=labels)
    found = answer(scene)
    assert found.shape == (2, len(labels), *SIZE)
    scene.index = scene.index[:, [2, 0, 3, 1]]
    assert torch.allclose(answer(scene), found, atol=1e-4)
    valid = torch.tensor([[True, True, True, False]] * 2)
    three = answer(scene, valid=valid)
    scene.reference_images = scene.reference_images.clone()
    scene.reference_images[scene.index[:, 3]] = torch.randn(2, 1, 64, 64)
    assert torch.allclose(answer(scene, valid=valid), three, atol=1e-5) and three.any()


def test_it_counts_where_the_network_is_set_to_and_never_in_training():
    scene, usual = lit(), lit(probe=0.0)
    assert usual.references().probed_second.numel() == 0 and usual.references().probed_first.shape == (2, 4, 1, 0)
    with_probe, without = scene.run()[1], usual.run()[1]
    news = unknown(scene.references().missed, torch.ones(2, 4))
    told = news[..., None, None] * torch.nn.functional.interpolate(answer(scene), (64, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(with_probe - without, 8 * told, atol=1e-3) and told.any()
    assert torch.equal(scene.run(None)[1], usual.run(None)[1]), "without references there is nothing to fit"
    scene.net.train()
    assert scene.references().probed_first.shape[-1] == 0
    scene.net.eval()


def test_a_probe_has_a_sensible_weight():
    for value in (-1.0, True, "much", float("inf")):
        with pytest.raises(ModelError, match="'probe' must be a number of 0 or more"):
            make(probe=value)


def test_it_is_the_same_with_several_threads():
    """Of a process of its own, as it might never end."""
    code = """if True:
        import torch
        from cers.network import probe
        torch.manual_seed(0)
        features = [torch.randn(6, 24, 20, 20)]
        x = probe.seen(features, (20, 20))
        second, first = (x.transpose(1, 2) @ x / 400)[:, None, None], x.mean(1)[:, None, None]
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(probe.answer(features, (20, 20), second, first, torch.ones(6, 1), torch.ones(6, 1, 1)))
        raise SystemExit(not torch.allclose(*found, atol=1e-3))
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
