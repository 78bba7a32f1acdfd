"""What the network promises whatever its weights are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from nets import CONVNEXT, RATIONALE, RESNET, SWIN, Scene, blobs, make, unit

from cers.errors import CersError, InputError, ModelError
from cers.network.encoder import TransformersEncoder, build_encoder
from cers.network.evidence import Evidence, References, missed, moments, place, unknown
from cers.network.fuse import fuse
from cers.network.model import CersNet, NetworkConfig

LITE0 = {"kind": "efficientnet-lite0"}


@pytest.fixture(scope="module")
def net() -> CersNet:
    return make()


@pytest.mark.parametrize(
    ("encoder", "labels"),
    [(LITE0, ("lesion",)), (RESNET, ("core", "edema")), (CONVNEXT, ("a", "b", "c")), (SWIN, ("lesion",))],
    ids=["lite0", "resnet", "convnext", "swin"],
)
@pytest.mark.parametrize("size", [(64, 64), (97, 130), (33, 47)])
def test_any_backbone_any_size_any_labels(encoder, labels, size):
    scene = Scene(make(encoder, labels), h=size[0], w=size[1])
    plain, fused, weights = scene.run()
    assert plain.shape == fused.shape == (2, len(labels), *size)
    assert weights.shape == (2, 3)
    assert torch.isfinite(plain).all() and torch.isfinite(fused).all()
    assert (weights >= 0).all() and (weights.sum(1) <= 1 + 1e-6).all() and (weights.sum(1) > 0).all()


def test_image_vectors_are_of_unit_length(net):
    encoded = net.encode(torch.randn(3, 1, 70, 50))
    assert torch.allclose(encoded.pooled.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(encoded.layout.norm(dim=1), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("labels", [("lesion",), ("core", "edema", "necrosis")])
def test_the_order_of_references_does_not_matter(labels):
    scene = Scene(make(labels=labels), k=4)
    _, fused, weights = scene.run()
    order = torch.tensor([2, 0, 3, 1])
    scene.index = scene.index[:, order]
    _, again, reordered = scene.run()
    assert (fused - again).abs().max() < 1e-5
    assert (weights[:, order] - reordered).abs().max() < 1e-5


def test_absent_references_are_the_null_reference_exactly(net):
    scene = Scene(net)
    _, none, weights = scene.run(None)
    _, empty, no_weights = scene.run(scene.references().gather((slice(None), slice(0, 0))))
    _, invalid, zero = scene.run(valid=torch.zeros(2, 3, dtype=torch.bool))
    assert weights.shape == no_weights.shape == (2, 0)
    assert torch.equal(none, empty) and torch.equal(none, invalid)
    assert (zero == 0).all()
    assert not torch.allclose(none, scene.run()[1], atol=1e-3)


def test_a_query_without_references_beside_one_that_has_them(net):
    scene = Scene(net)
    _, fused, weights = scene.run(valid=torch.tensor([[True, True, True], [False, False, False]]))
    assert torch.allclose(fused[0], scene.run()[1][0], atol=1e-6)
    assert torch.equal(fused[1], scene.run(None)[1][1])
    assert weights[1].sum() == 0


def test_what_fills_an_invalid_place_does_not_matter(net):
    """Also when it holds nothing but large numbers."""
    scene = Scene(net)
    valid = torch.tensor([[True, True, False]] * 2)
    _, fused, weights = scene.run(valid=valid)
    references = scene.references()
    for name in ("dense", "foreground", "background", "second", "first", "masks", "rationale", "pooled", "layout", "separation"):
        getattr(references, name)[:, 2] = 1e3
    _, again, other = scene.run(references, valid)
    assert torch.allclose(fused, again, atol=1e-5) and torch.allclose(weights, other, atol=1e-6)
    two = scene.references().gather((slice(None), slice(0, 2)))
    assert torch.allclose(fused, scene.run(two)[1], atol=1e-5)


@pytest.mark.parametrize("change", ["mask", "rationale", "image"])
def test_a_changed_reference_changes_the_evidence_decoder_only(net, change):
    scene = Scene(net)
    plain, fused, _ = scene.run()
    if change == "mask":
        scene.masks = scene.masks.roll(13, -1)
    elif change == "rationale":
        scene.reference_rationale = unit(len(scene.reference_rationale))
    else:
        scene.reference_images = scene.reference_images.flip(-1)
    again, other, _ = scene.run()
    assert torch.equal(plain, again)
    assert (fused - other).abs().max() > 1e-4


def test_the_querys_rationale_changes_the_gate(net):
    scene = Scene(net)
    plain, _, weights = scene.run()
    scene.rationale = unit(2)
    again, _, other = scene.run()
    assert (weights - other).abs().max() > 1e-5
    assert torch.equal(plain, again)
    scene.rationale = torch.zeros(2, RATIONALE)
    assert torch.isfinite(scene.run()[1]).all()


def test_a_batch_is_the_same_as_single_images(net):
    scene = Scene(net, n=3, h=70, w=90)
    whole = scene.run()
    for n in range(3):
        for a, b in zip(whole, scene.run(rows=slice(n, n + 1))):
            assert torch.allclose(a[n : n + 1], b, atol=1e-5)


def test_without_text_nothing_changes_and_with_text_something_does(net):
    torch.manual_seed(3)
    x, tokens = torch.randn(2, 1, 64, 64), torch.randn(2, 5, RATIONALE)
    present = torch.tensor([[False] * 5, [True, True, True, False, False]])
    with torch.no_grad():
        bare = net.decode_plain(net.encode(x))
        told = net.decode_plain(net.encode(x, tokens, present))
        nothing = net.decode_plain(net.encode(x, tokens, torch.zeros(2, 5, dtype=torch.bool)))
        tokens[1, 3:] = 100
        padded = net.decode_plain(net.encode(x, tokens, present))
    assert torch.equal(bare, nothing)
    assert torch.equal(bare[0], told[0])
    assert (bare[1] - told[1]).abs().max() > 1e-5
    assert torch.allclose(told, padded, atol=1e-6)


def test_text_does_not_move_the_vector_that_finds_references(net):
    x = torch.randn(1, 1, 64, 64)
    told = net.encode(x, torch.randn(1, 4, RATIONALE), torch.ones(1, 4, dtype=torch.bool))
    assert torch.equal(net.encode(x).pooled, told.pooled)


def squares(*corners: tuple[int, int]) -> torch.Tensor:
    """Masks (1, k, 1, 64, 64) of 16 x 16 pixels with these upper left corners."""
    masks = torch.zeros(1, len(corners), 1, 64, 64)
    for n, (top, left) in enumerate(corners):
        masks[0, n, 0, top : top + 16, left : left + 16] = 1
    return masks


def test_masks_that_lie_in_one_place_tell_the_place():
    same, apart = squares((8, 8), (8, 8), (8, 8)), squares((0, 0), (24, 24), (48, 48))
    told = place(same, torch.ones(1, 3))
    assert torch.allclose(told, 2 * same[:, 0] - 1)
    assert not place(apart, torch.ones(1, 3)).any() and not place(same[:, :1], torch.ones(1, 1)).any()
    assert not place(same, torch.zeros(1, 3)).any() and not place(same * 0, torch.ones(1, 3)).any()
    assert not place(same, torch.tensor([[1.0, 0.0, 0.0]])).any(), "one that counts, of three, is one alone"
    assert 0 < place(same, torch.full((1, 3), 0.5)).max() < 1


def test_a_mask_that_lies_elsewhere_is_outvoted():
    told = place(squares((8, 8), (9, 8), (8, 9), (40, 40)), torch.ones(1, 4))[0, 0]
    assert told[10:20, 10:20].min() > 0.5 and told[42:54, 42:54].max() < -0.5
    two = torch.cat([squares((8, 8), (8, 8)), squares((0, 0), (48, 48))], 2)  # the second label lies here and there
    told = place(two, torch.ones(1, 2))
    assert told[0, 0].max() == 1 and not told[0, 1].any()


def test_the_place_is_told_where_the_network_is_set_to_and_never_in_training():
    nets = [make(place=place) for place in (0.0, 4.0)]
    logits = []
    for net in nets:
        scene = Scene(net, k=2)
        scene.masks = torch.zeros_like(scene.masks)
        scene.masks[:, :, 5:30, 5:30] = 1
        logits.append(scene.run()[1])
    told = place(scene.references().masks, torch.ones(2, 2))
    assert torch.allclose(logits[1] - logits[0], 4 * told, atol=1e-4) and told.max() == 1, "an untrained D_S misses all"
    scene.sure = False  # how far they count is worked out, in training not
    trained = []
    for net in nets:
        scene.net = net
        net.evidence.train()
        trained.append(scene.run()[1])
    assert torch.equal(*trained)


def test_what_the_network_knows_already_is_not_told():
    masks, plain = squares((4, 4), (4, 4), (4, 4))[0].expand(-1, 2, -1, -1), torch.zeros(3, 2, 64, 64)
    plain[0], plain[1, :, 8:24, 4:20] = masks[0], 1
    lacking = missed(plain, masks)
    assert lacking.shape == (3, 2) and torch.allclose(lacking[:, 0], torch.tensor([0.0, 0.25, 1.0]), atol=1e-5)
    counted = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]])
    assert torch.allclose(unknown(lacking.expand(3, -1, -1), counted)[:, 0], torch.tensor([0.0, 1.0, 0.0])), (
        "what does not count says nothing"
    )
    assert 0 < unknown(lacking[None], torch.tensor([[0.2, 1.0, 0.0]])).max() < 1
    scene = Scene(make(place=4.0, probe=8.0), k=2)
    scene.masks[:] = scene.masks[:1]
    stock = scene.references()
    told = scene.run(stock)[1]
    assert not torch.equal(scene.run(replace(stock, missed=stock.missed * 0))[1], told)
    scene.net.config = replace(scene.net.config, place=0.0, probe=0.0)
    without = scene.run(stock)[1]
    scene.net.config = replace(scene.net.config, place=4.0, probe=8.0)
    assert torch.equal(scene.run(replace(stock, missed=stock.missed * 0))[1], without)


@pytest.mark.parametrize("labels", [("lesion",), ("core", "edema")])
def test_gradients_reach_every_parameter(labels):
    net = make(LITE0, labels).train()
    torch.manual_seed(5)
    x, rationale = torch.randn(4, 1, 64, 64), unit(4)
    present = torch.tensor([[True] * 3] * 3 + [[False] * 3])
    encoded = net.encode(x, torch.randn(4, 3, RATIONALE), present)
    plain = net.decode_plain(encoded)
    stock = net.references(encoded, blobs(4, len(labels), 64, 64), rationale)
    index = torch.tensor([[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]])
    valid = torch.tensor([[True, True, True], [True, False, False], [False] * 3, [True, True, False]])
    fused, _ = net.decode_evidence(encoded, plain.sigmoid(), unit(4), stock.gather(index), valid)
    target = blobs(4, len(labels), 64, 64)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    (loss(plain, target) + loss(fused, target) + net.align(encoded, rationale)).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_evidence_decoder_does_not_train_the_plain_mask(net):
    scene = Scene(net)
    encoded = net.encode(scene.x)
    plain = net.decode_plain(encoded).sigmoid()
    plain.retain_grad()
    net.decode_evidence(encoded, plain, scene.rationale, scene.references())[0].sum().backward()
    assert plain.grad is None
    net.zero_grad()


def test_the_reference_weights_follow_the_reference_that_is_the_query_itself():
    """The layout term alone, untrained, must prefer the identical scan."""
    net = make()
    scene = Scene(net, n=1, k=3)
    torch.nn.init.zeros_(net.evidence.gate[2].weight)
    scene.reference_images[1] = scene.x[0]
    assert scene.run()[2][0].argmax() == 1


@pytest.mark.parametrize("encoder", [LITE0, RESNET, CONVNEXT], ids=["lite0", "resnet", "convnext"])
def test_fused_equals_unfused(encoder):
    net = make(encoder)
    scene = Scene(net)
    before = scene.run()
    count = sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())
    fuse(net)
    after = scene.run()
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) < count
    assert max((a - b).abs().max() for a, b in zip(before, after)) < 1e-4


def test_a_mask_without_any_lesion_is_a_valid_reference(net):
    scene = Scene(net)
    scene.masks = torch.zeros_like(scene.masks)
    assert all(torch.isfinite(o).all() for o in scene.run())
    scene.masks = torch.ones_like(scene.masks)
    assert all(torch.isfinite(o).all() for o in scene.run())


def test_a_lesion_of_one_pixel_still_counts(net):
    scene = Scene(net)
    scene.masks = torch.zeros_like(scene.masks)
    none = scene.run()[1]
    scene.masks[:, :, 40, 21] = 1
    assert (scene.run()[1] - none).abs().max() > 1e-5


def test_references_split_and_stack_without_loss(net):
    scene = Scene(net, n=1, k=3)
    stock = net.references(net.encode(scene.reference_images), scene.masks, scene.reference_rationale)
    again = References.stack([References.stack([stock.row(n) for n in range(3)])])
    assert torch.equal(scene.run()[1], scene.run(again)[1])
    assert again.cast(torch.float64).dense.dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 31, 64), (64, 64)])
def test_an_image_of_the_wrong_shape_is_refused(net, shape):
    with pytest.raises(InputError, match="32 pixels"):
        net.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"kind": "vgg"},
        {"kind": "efficientnet-lite0", "weights": "x"},
        {"kind": "transformers"},
        {"kind": "transformers", "config": {}},
        {"kind": "transformers", "config": {"model_type": "no-such-model"}},
        {"kind": "transformers", "config": {"hidden_sizes": [8]}},
        {"kind": "transformers", "path": "/no/such/folder"},
        {"kind": "transformers", "colour": "red"},
        {"kind": "transformers", "config": {"model_type": "bert"}},
        {"kind": "transformers", "config": {**RESNET["config"], "out_features": ["stage3", "stage4"]}},
        {"kind": "transformers", "config": {**RESNET["config"], "out_features": ["stage9"]}},
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused_in_one_sentence(encoder):
    with pytest.raises(ModelError) as caught:
        build_encoder(encoder)
    assert str(caught.value).strip().endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"widths": [8, 8]},
        {"labels": []},
        {"widths": [8, 0, 8]},
        {"widths": "abc"},
        {"deepest": 30},
        {"key_channels": -1},
        {"align": "many"},
        {"labels": "lesion"},
        {"rationale": 0},
    ],
)
def test_a_wrong_architecture_is_refused(settings):
    with pytest.raises(ModelError):
        CersNet(NetworkConfig(**{"encoder": RESNET, "widths": [8, 12, 16], **settings}))


@pytest.mark.parametrize("encoder", [RESNET, CONVNEXT, SWIN], ids=["resnet", "convnext", "swin"])
def test_a_saved_backbone_is_loaded_from_its_folder(tmp_path, encoder):
    torch.manual_seed(0)
    first = TransformersEncoder(config=encoder["config"]).eval()
    first.backbone.save_pretrained(tmp_path)
    second = build_encoder({"kind": "transformers", "path": str(tmp_path)}).eval()
    x = torch.randn(1, 1, 64, 64)
    assert second.channels == first.channels and second.strides == first.strides == (4, 8, 16, 32)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(first(x), second(x), strict=True))


def test_alignment_is_least_for_matching_pairs(net):
    with torch.no_grad():
        encoded = net.encode(torch.randn(6, 1, 64, 64))
        text = unit(6)
        values = []
        for order in (torch.arange(6), torch.arange(6).roll(1)):
            fitted = make()
            fitted.align_text.weight.zero_()
            fitted.align_text.bias.zero_()
            # a linear map that sends text n to the image vector n
            fitted.align_text.weight.copy_((torch.linalg.pinv(text) @ encoded.aligned[order]).T)
            values.append(fitted.align(encoded, text).item())
    assert values[0] < values[1] and isinstance(values[0], float)


def test_errors_are_the_projects_own():
    assert issubclass(ModelError, CersError)


def test_the_fitted_map_is_the_ridge_regression_on_the_positions_of_all_references():
    """Against one solved from the positions themselves, inside and outside weighing alike in each reference."""
    torch.manual_seed(3)
    keys, masks = [torch.randn(3, 6, 9, 7) for _ in range(3)], (torch.rand(3, 2, 9, 7) > 0.7).float()
    masks[:, 1] *= 1 - masks[:, 0]
    second, first = moments(keys, masks)
    evidence = Evidence([8, 8, 8, 8], 2, 6, RATIONALE)
    share = torch.tensor([[0.5, 0.2, 0.3]])
    stock = References(*[torch.zeros(1, 3)] * 3, second[None], first[None], *[torch.zeros(1, 3)] * 8)
    query = [torch.randn(1, 6, 5, 4) for _ in range(3)]
    maps = evidence._fitted_maps(query, stock, share)
    for level, label in itertools.product(range(3), range(2)):
        rows, target, weight = [], [], []
        for n in range(3):
            unit_keys = torch.nn.functional.normalize(keys[level][n].flatten(1), dim=0).T
            x = torch.cat([unit_keys, torch.ones(len(unit_keys), 1)], 1)
            inside, outside = masks[n, label].flatten() > 0, masks[n].amax(0).flatten() == 0
            for chosen, sign in ((inside, 1.0), (outside, -1.0)):
                rows.append(x[chosen])
                target.append(torch.full((int(chosen.sum()),), sign))
                weight.append(torch.full((int(chosen.sum()),), float(share[0, n]) / (float(chosen.sum()) + 1e-3)))
        x, y, w = torch.cat(rows), torch.cat(target), torch.cat(weight)
        solved = torch.linalg.solve(x.T @ (w[:, None] * x) + evidence.ridge[level].exp() * torch.eye(7), x.T @ (w * y))
        unit_query = torch.nn.functional.normalize(query[level][0].flatten(1), dim=0).T
        expected = (torch.cat([unit_query, torch.ones(20, 1)], 1) @ solved).clamp(-2, 2).reshape(5, 4)
        assert torch.allclose(maps[level][0, label], expected, atol=1e-3)


def test_references_without_a_lesion_fit_to_nothing():
    """And no reference at all gives a map of zeros."""
    keys = [torch.randn(2, 6, 8, 8) for _ in range(3)]
    second, first = moments(keys, torch.zeros(2, 1, 8, 8))
    evidence = Evidence([8, 8, 8, 8], 1, 6, RATIONALE)
    stock = References(*[torch.zeros(1, 2)] * 3, second[None], first[None], *[torch.zeros(1, 2)] * 8)
    maps = evidence._fitted_maps([k[:1] for k in keys], stock, torch.tensor([[0.5, 0.5]]))
    assert all((m < -0.5).all() for m in maps)
    assert all((m == 0).all() for m in evidence._fitted_maps([k[:1] for k in keys], stock, torch.zeros(1, 2)))


def test_a_mask_of_its_own_picture_separates_it_and_another_does_not():
    torch.manual_seed(5)
    masks = blobs(4, 1, 32, 32)
    keys = [torch.randn(4, 6, 32, 32) * 0.3 for _ in range(3)]
    for key in keys:
        key[:, 0] += 3 * masks[:, 0]  # what lies in the mask looks different
    evidence = Evidence([8, 8, 8, 8], 1, 6, RATIONALE)
    own, other, none = (evidence.separation(*moments(keys, m)) for m in (masks, masks.roll(1, 0), masks * 0))
    assert (own > other + 0.15).all() and (own > none + 0.15).all()
    assert (own <= 1).all() and (none >= 0).all()
