"""References that the others contradict do not count: measured on pictures of which the masks mean something."""

from __future__ import annotations

import pytest
import torch
from nets import Scene, make

from cers.network.evidence import AGREED


def lit(labels: tuple[str, ...] = ("lesion",), k: int = 4) -> Scene:
    """Pictures that are bright where the first label is, and dark where the second is."""
    scene = Scene(make(labels=labels), k=k)
    scene.reference_images = 0.1 * scene.reference_images
    for label, brightness in zip(range(len(labels)), (3.0, -3.0)):
        scene.reference_images += brightness * scene.masks[:, label : label + 1]
    scene.sure = False
    return scene


def agreement(scene: Scene, valid: torch.Tensor | None = None) -> torch.Tensor:
    references = scene.references()
    return scene.net.evidence.agreement(references, torch.ones_like(scene.index, dtype=torch.bool) if valid is None else valid)


@pytest.mark.parametrize("labels", [("lesion",), ("core", "edema")])
def test_masks_of_their_pictures_bear_each_other_out(labels):
    found = agreement(lit(labels))
    assert (found > AGREED[1]).all() and (found <= 1).all()


def test_a_wrong_mask_is_contradicted_and_the_right_ones_are_not():
    scene = lit()
    scene.masks[1] = scene.masks[1].roll((31, 29), (-2, -1))
    found = agreement(scene)
    assert found[0, 1] < AGREED[0] < AGREED[1] < found[0, [0, 2, 3]].min()
    weights = scene.run()[2]
    assert weights[0, 1] == 0 and (weights[0, [0, 2, 3]] > 0).all() and (weights[1] > 0).all()
    gone = scene.run(valid=torch.tensor([[True, False, True, True], [True] * 4]))
    assert torch.allclose(scene.run()[1], gone[1], atol=1e-5)  # as if it were not there


def test_references_that_are_all_wrong_leave_what_is_found_without_any():
    scene = lit()
    scene.masks = scene.masks.roll((31, 29), (-2, -1))[[3, 0, 1, 2, 7, 4, 5, 6]]
    assert (agreement(scene) < AGREED[0]).all()
    _, fused, weights = scene.run()
    assert (weights == 0).all()
    assert torch.equal(fused, scene.run(None)[1])
    scene.sure = True  # unless a person insists
    assert (scene.run()[2] > 0).all()


def test_in_training_all_count():
    scene = lit()
    scene.masks = scene.masks.roll((31, 29), (-2, -1))
    scene.net.evidence.train()
    assert (scene.run()[2] > 0).all()


def test_one_alone_counts_and_one_without_a_mask_does_not():
    scene = lit(k=2)
    only = torch.tensor([[True, False], [True, True]])
    assert agreement(scene, only)[0].isnan()[0] and scene.run(valid=only)[2][0, 0] > 0
    scene.masks[1] = 0
    found = agreement(scene)
    assert found[0, 0].isnan() and found[0, 1] == 0
    weights = scene.run()[2]
    assert weights[0, 0] > 0 and weights[0, 1] == 0


def test_a_label_that_only_one_shows_is_not_held_against_it():
    scene = lit(("core", "edema"), k=3)
    scene.masks[1:3, 1] = 0  # of the first query, one alone shows the second label
    assert (agreement(scene)[0] > AGREED[1]).all()
    scene.masks[0, 0] = 0  # and nothing else
    assert agreement(scene)[0, 0].isnan()


def test_order_and_what_fills_an_invalid_place_do_not_matter():
    scene = lit()
    scene.masks[1] = scene.masks[1].roll((31, 29), (-2, -1))
    before, order = agreement(scene), torch.tensor([2, 0, 3, 1])
    scene.index = scene.index[:, order]
    assert torch.allclose(agreement(scene), before[:, order], atol=1e-4)
    valid = torch.tensor([[True, True, True, False]] * 2)
    first = agreement(scene, valid)[:, :3]
    references = scene.references()
    for name in ("second", "first", "masks"):
        getattr(references, name)[:, 3] = 1e3
    assert torch.allclose(scene.net.evidence.agreement(references, valid)[:, :3], first, atol=1e-4)
