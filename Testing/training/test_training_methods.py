"""Every method learns, and comparisons differ in nothing but what they compare."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from runs import NETWORK, metrics, settings, trainer
from safetensors.torch import save_file

from cers.inference.model import load_model
from cers.training import tasks
from cers.training.batches import nearest, two_stage
from cers.training.config import METHODS, TrainConfig
from cers.training.datasets import open_dataset
from cers.training.losses import confident, dice_bce, hard_dice, pseudo_label, sharpen
from cers.training.memory import Memory
from cers.training.splits import make_split
from cers.training.tasks import make
from cers.training.trainer import Trainer, train
from cers.training.validation import frames, masks


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_to_a_model_that_loads(folder, cache, tmp_path, method):
    config = settings(folder, method=method, steps=6, validate=2)
    assert train(config, tmp_path / "run", cache) == "finished"
    told = metrics(tmp_path / "run")
    assert told[-1]["step"] == 6 and all(np.isfinite(v) for record in told for v in record.values() if isinstance(v, float))
    assert any("validation_plain" in record for record in told)
    steps = next(record for record in told if "loss" in record)
    assert ("consistency" in steps) == (method != "supervised") and ("fused" in steps) == (method in ("mutual_consistency", "cers"))
    model = load_model(tmp_path / "run" / "model")
    assert list(model.labels.values()) == ["tumor"] and model.config.size == 64
    assert float(model.net.text.strength) == 0  # it was never trained


@pytest.mark.parametrize("changes", [{"method": m} for m in METHODS[:4]] + [{"evidence": "none"}], ids=lambda c: next(iter(c.values())))
def test_what_a_method_does_not_train_changes_no_mask(folder, cache, tmp_path, changes):
    """A model decodes an image with the whole network, whatever was trained of it."""
    network = {**NETWORK, "place": 0, "probe": 0}  # which were not trained, and add to what the decoders find
    config = settings(folder, steps=4, network=network, **changes)
    train(config, tmp_path / "run", cache)
    net, data = load_model(tmp_path / "run" / "model").net, open_dataset(config.data, [], config.frame, config.plane, cache)
    rows = np.arange(4)
    with torch.no_grad():
        encoded = net.encode(frames(data, rows, config.size))
        plain, blank = net.decode_plain(encoded), torch.zeros(4, net.config.rationale)
        null = net.decode_evidence(encoded, plain.sigmoid(), blank)[0]
        words = torch.nn.functional.normalize(torch.randn(4, net.config.rationale, generator=torch.Generator().manual_seed(0)), dim=1)
        stock = net.references(encoded, masks(data, rows, config.size), words)
        told = net.decode_evidence(encoded, plain.sigmoid(), words, stock.gather(torch.tensor([[1, 2], [2, 3], [3, 0], [0, 1]])))[0]
    assert torch.allclose(told, null, atol=1e-4)
    assert torch.allclose(null, plain, atol=1e-4) == (config.method not in ("mutual_consistency", "cers"))


def test_the_loss_goes_down(folder, cache):
    run = trainer(folder, cache, method="supervised", steps=40, labelled=1.0, validation=0.1)
    losses = [run.one_step(n / 40)["loss"] for n in range(40)]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def drawn(folder, cache, **changes):
    run = trainer(folder, cache, tasks=0.0, foreign=0.0, **changes)
    batch = run.batches.draw(4, [0, 1], True, 0.0, random_references=run.config.evidence == "random")
    return run, batch, run.memory.rationales(batch, 384)


def test_what_is_kept_is_of_these_weights_and_planes(folder, cache, tmp_path):
    """A training may write its weights anew under one name, and a table may be mended; neither changes the pictures."""
    copy, weights, found = shutil.copytree(folder, tmp_path / "copy"), tmp_path / "begin.safetensors", []
    for seed in (1, 2, 2):
        net = trainer(copy, cache, method="supervised", seed=seed).net
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, weights)
        found.append(trainer(copy, cache, initial=str(weights)).memory)
        table = (copy / "cases.csv").read_text()
        (copy / "cases.csv").write_text(table if seed == 1 else table.replace("axial", "coronal"))
    before, other, mended = found
    assert not np.array_equal(before.vectors, other.vectors) and np.array_equal(before.expert, other.expert)
    assert np.array_equal(other.vectors, mended.vectors) and not np.array_equal(other.expert, mended.expert)


def test_evidence_switches_change_the_evidence_only(folder, cache):
    _, kept, (expert, query) = drawn(folder, cache, evidence="retrieved")
    for evidence in ("none", "random", "shuffled_rationale"):
        run, batch, (other, asked) = drawn(folder, cache, evidence=evidence)
        for name in ("rows", "unlabelled_rows", "x", "y", "y_task", "weak", "strong", "task", "keep"):
            assert np.array_equal(getattr(batch, name), getattr(kept, name)), (evidence, name)
        assert torch.equal(asked, query)
        group = np.arange(6) // 3
        own = group[batch.index.numpy()[:6]] == group[:, None]
        assert own.all() if evidence != "random" else not own.any()
        assert torch.equal(other, expert) == (evidence != "shuffled_rationale")
        assert run.config.referring == (evidence != "none")


def test_no_picture_refers_to_itself_or_its_kin(folder, cache):
    run = trainer(folder, cache, labelled=1.0, null=0.0)
    kin = run.split.kin
    for step in range(20):
        batch = run.batches.draw(step, [0, 1], False, 0.0)
        rows = kin[batch.rows]
        assert not (batch.valid.numpy() & (rows[batch.index.numpy()] == rows[:, None])).any()


def test_groups_do_not_depend_on_who_draws_them(folder, cache):
    run = trainer(folder, cache, groups=4)
    together = run.batches.draw(7, [0, 1, 2, 3], True, 0.5)
    alone = run.batches.draw(7, [2, 3], True, 0.5)
    assert (
        np.array_equal(together.rows[6:], alone.rows)
        and torch.equal(together.x[6:], alone.x)
        and torch.equal(together.strong[2:], alone.strong)
    )
    assert torch.equal(together.valid[6:12], alone.valid[:6]) and torch.equal(together.index[6:12] - 6, alone.index[:6])


def test_where_nothing_is_shown_the_usual_thing_is_to_be_found(folder, cache):
    run = trainer(folder, cache, null=0.5)
    seen = 0
    for step in range(12):
        batch = run.batches.draw(step, [0, 1], False, 1.0)
        assert batch.task.all()
        nothing = ~batch.valid[:6].any(1)
        assert torch.equal(batch.y_task[nothing], batch.y[nothing])
        seen += int((batch.y_task[~nothing] != batch.y[~nothing]).any())
    assert seen > 6


def test_tasks_are_made_of_binary_masks_and_finite_pictures():
    x, y = torch.rand(5, 1, 64, 64), torch.zeros(5, 2, 64, 64)
    y[:, 0, 20:30, 20:30] = 1
    filled = 0
    for seed in range(40):
        a, b, usual = make(x.clone(), y.clone(), np.random.default_rng(seed))
        assert a.shape == x.shape and b.shape == usual.shape == y.shape and torch.isfinite(a).all() and a.min() >= 0
        assert set(b.unique().tolist()) <= {0.0, 1.0} and set(usual.unique().tolist()) <= {0.0, 1.0}
        filled += bool(b.any())
    assert filled > 35


def test_a_made_up_region_is_followed_from_picture_to_picture(monkeypatch):
    """A disc of another size in each, by scanners of other scales, and one picture without it, which is never a member beside others."""
    monkeypatch.setattr(tasks, "KINDS", ("region",))
    monkeypatch.setattr(tasks, "SHARES", (1.0,))
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    x, scales = torch.zeros(5, 1, 96, 96), (1.0, 0.9, 0.8, 0.7, 0.6)
    x[:, :, 28:70, 34:76] = 0.3
    for n in range(4):
        x[n, 0][(rows - 46 - n) ** 2 + (columns - 52) ** 2 < (9 + n) ** 2] = 0.8
    x *= torch.tensor(scales)[:, None, None, None]
    several = 0
    for seed in range(150):
        pictures, target, _ = make(x.clone(), torch.zeros(5, 1, 96, 96), np.random.default_rng(seed))
        found = [float(p[m > 0].median()) for p, m in zip(pictures, target)]
        discs = [n for f in found for n in range(4) if abs(f - 0.8 * scales[n]) < 0.01]
        if len(discs) == 5 and len(set(discs)) > 1:  # neither inverted nor of one picture nor of the rest of the body
            several += 1
            bright = [p > 0.55 * scales[n] for p, n in zip(pictures, discs)]
            assert all(float((m * b).sum() / m.sum()) > 0.9 for m, b in zip(target, bright))
    assert several > 2


def test_two_stage_selection_takes_the_best_rationale_among_the_nearest():
    keys = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    texts = np.eye(4, dtype=np.float32)[[1, 0, 0, 0]]
    query, text = np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32)[:1]
    found = two_stage(query, keys, text, texts, np.array([9]), np.array([0, 1, 2, 3]), 2, 2, 0.5)
    assert found.tolist() == [[1, 0]]  # the third has the right text, but was not near enough to be considered
    assert two_stage(query, keys, text, texts, np.array([1]), np.array([0, 1, 2, 3]), 2, 2, 0.5)[0].tolist() == [0, 2]
    assert nearest(query, keys, np.array([0]), np.array([0, 0, 0, 0]), 2).tolist() == [[0, 1]]  # all are kin


def test_pool_vectors_follow_the_encoder_by_an_average_of_unit_vectors(folder, cache):
    run = trainer(folder, cache, pool_momentum=0.9)
    memory: Memory = run.memory
    memory.refresh(run.teacher, 10, "cpu")
    old = memory.vectors.copy()
    with torch.no_grad():
        for p in run.teacher.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    memory.refresh(run.teacher, 15, "cpu")
    mixed, memory.renewed = memory.vectors.copy(), -1
    memory.refresh(run.teacher, 15, "cpu")
    expected = 0.9**5 * old + (1 - 0.9**5) * memory.vectors
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-5) and np.allclose(mixed, expected, atol=1e-5)
    assert not np.allclose(mixed, old, atol=1e-3)


def test_pictures_get_a_rationale_from_their_first_mask_and_never_from_the_experts(folder, cache):
    run = trainer(folder, cache, steps=60)
    n = len(run.split.labelled)
    assert not run.memory.query.any() and run.memory.expert.any()
    for step in range(30):
        run.one_step(0.1 if step < 18 else 0.9)
        if step == 17:
            assert run.memory.query[:n].any() and not run.memory.query[n:].any(), "before there are unlabelled ones, too"
    for rows in (slice(0, n), slice(n, None)):
        written = np.linalg.norm(run.memory.query[rows], axis=1)
        assert (written > 0).any() and np.allclose(written[written > 0], 1, atol=1e-4)
    told = np.abs(run.memory.query[:n]).max(1) > 0
    assert (np.abs(run.memory.query[:n] - run.memory.expert)[told].max(1) > 1e-3).all(), "measured on its own mask"


def test_masks_of_unlabelled_pictures_are_never_read(folder, cache):
    """Whatever is drawn on them, the run is the same."""

    def weights(spoil: bool):
        config = settings(folder)
        data = open_dataset(config.data, [], config.frame, config.plane, cache)
        split = make_split(data, config)
        if spoil:
            data.masks.parts = [np.array(p) for p in data.masks.parts]
            for row in split.unlabelled:
                data.masks.parts[0][row] = 1 - data.masks.parts[0][row]
        run = Trainer(config, data, split, cache)
        for step in range(4):
            run.one_step(step / 4)
        return run.net.state_dict()

    a, b = weights(False), weights(True)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_unimatch_shows_boxes_of_other_pictures_with_their_masks(folder, cache):
    shape = {"groups": 4, "unlabelled_members": 2}
    run = trainer(folder, cache, method="unimatch", **shape)
    mixed = 0
    for step in range(6):
        batch = run.batches.draw(step, [0, 1, 2, 3], True, 0.0)
        group = np.arange(8) // 2
        assert (group[batch.other.numpy()] == group ^ 1).all() and not torch.equal(batch.second, batch.strong)
        place = torch.arange(8.0)[:, None, None, None].expand(8, 1, 64, 64)
        for view in (0, 1):
            told, box = batch.mixed(place, view)[:, 0], batch.boxes[:, view]
            theirs = batch.other.float()[:, None, None].expand_as(told)
            assert torch.equal(told[box], theirs[box]) and torch.equal(told[~box], place[:, 0][~box])
            mixed += int(box.any((1, 2)).sum())
    assert 24 < mixed < 72, "about half of 96"
    alone = run.batches.draw(5, [2, 3], True, 0.0)
    assert torch.equal(alone.second, batch.second[4:]) and torch.equal(alone.boxes, batch.boxes[4:])
    peer = trainer(folder, cache, method="mean_teacher", **shape).batches.draw(5, [0, 1, 2, 3], True, 0.0)
    assert peer.second is None and torch.equal(peer.strong, batch.strong)


def test_sharpening_and_confidence():
    p = torch.tensor([0.02, 0.4, 0.5, 0.6, 0.98])
    s = sharpen(p)
    assert s[0] < 1e-6 and s[1] < 0.05 and s[2] == 0.5 and s[3] > 0.95 and torch.allclose(s + sharpen(1 - p), torch.ones(5), atol=1e-5)
    assert confident(p, 0.9).tolist() == [1, 0, 0, 0, 1]


def test_losses_at_their_ends():
    target = torch.zeros(2, 1, 8, 8)
    target[:, :, 2:5, 2:5] = 1
    right, wrong = (target * 2 - 1) * 20, (1 - target * 2) * 20
    assert dice_bce(right, target) < 0.01 < 1 < dice_bce(wrong, target)
    assert hard_dice(right, target).tolist() == [1, 1] and hard_dice(wrong, target).tolist() == [0, 0]
    nothing = torch.zeros_like(target)
    assert hard_dice(torch.full_like(target, -5), nothing).tolist() == [1, 1]
    assert dice_bce(torch.full_like(target, -20), nothing) < 0.01
    all_of_it = torch.ones_like(target)
    assert pseudo_label(right, target * 0.8, all_of_it) < 1e-3 and pseudo_label(wrong, target, all_of_it) > 0.9
    assert pseudo_label(wrong, target, 0 * all_of_it) == 0, "where nothing is sure nothing is learned"
    half = all_of_it.clone()
    half[..., 4:] = 0
    mended = torch.where(half > 0, right, wrong)
    assert pseudo_label(mended, target, half) < 1e-3 < 0.5 < pseudo_label(mended, target, all_of_it)


def test_slices_without_a_lesion_take_the_place_of_some_pictures(folder, cache, tmp_path):
    import SimpleITK as sitk

    k, j, i = np.indices((24, 24, 24)) - 11.5
    sitk.WriteImage(sitk.GetImageFromArray((100.0 * (k**2 + j**2 + i**2 < 100)).astype(np.float32)), str(tmp_path / "ball.nrrd"))
    run = trainer(folder, cache, lesion_free=[str(tmp_path / "ball.nrrd")], free=1.0, tasks=0.0, tasks_end=0.0)
    batch = run.batches.draw(0, [0, 1], False, 0.0)
    assert batch.removed.all() and not batch.y.any() and batch.x.abs().sum() > 0
    assert np.isfinite(run.one_step(0.0)["loss"])
    assert not trainer(folder, cache, free=1.0).batches.draw(0, [0, 1], False, 0.0).removed.all()


def test_a_bare_null_in_a_settings_file_is_the_setting_of_that_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: somewhere\nsteps: 3\nnull: 0.2\n")
    assert TrainConfig.read(tmp_path / "mine.yaml").null == 0.2


def test_where_all_masks_are_those_of_others_the_usual_thing_is_to_be_found(folder, cache):
    run = trainer(folder, cache, labelled=1.0, swap=1.0, null=0.0, foreign=0.0)
    batch = run.batches.draw(0, [0, 1], False, 1.0)
    assert batch.misled.all() and batch.task.all() and batch.valid.any()
    assert torch.equal(batch.y_task, batch.y)
    kept = trainer(folder, cache, labelled=1.0, swap=0.0, null=0.0, foreign=0.0).batches.draw(0, [0, 1], False, 1.0)
    assert torch.equal(kept.x, batch.x) and not kept.misled.any() and not torch.equal(kept.masks, batch.masks)
    # each group shows what the other one should
    m = len(batch.rows) // 2
    theirs = kept.masks.roll(m, 0).flatten(1)
    assert all((batch.masks[n].flatten() == theirs[n // m * m : n // m * m + m]).all(1).any() for n in range(2 * m))


def test_data_of_one_patient_is_drawn_from_all_of_it(folder, cache):
    """None may be another's reference; all the same they stand beside each other."""
    kin, keys = np.zeros(6, int), np.eye(6, dtype=np.float32) + 0.1
    near = nearest(keys, keys, kin, kin, 3)
    assert (near != np.arange(6)[:, None]).all() and len(np.unique(near)) > 3
    kin[5] = 1
    assert (nearest(keys, keys, kin, kin, 3)[:5] == 5).all(), "where there is another patient's, that is taken"
    assert nearest(keys[:1], keys[:1], kin[:1], kin[:1], 2).tolist() == [[0, 0]]


def test_choosing_in_parts_is_choosing_at_once():
    rng = np.random.default_rng(0)
    q, k, tq, tk = (rng.normal(size=(n, 8)).astype(np.float32) for n in (600, 40, 600, 40))
    kq, kk = rng.integers(0, 5, 600), rng.integers(0, 5, 40)
    chosen = two_stage(q, k, tq, tk, kq, kk, 12, 3, 0.5)
    for n in (0, 255, 256, 599):
        score = np.where(kk == kq[n], -9, k @ q[n])
        coarse = np.argsort(-score, kind="stable")[:12]
        fine = k[coarse] @ q[n] + 0.5 * tk[coarse] @ tq[n]
        assert chosen[n].tolist() == coarse[np.argsort(-fine, kind="stable")[:3]].tolist()
