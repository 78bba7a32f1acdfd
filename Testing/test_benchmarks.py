"""The benchmarks run and say what they measured; no time is tested."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as runner
from benchmarks.__main__ import NAMES, RESULTS, fill, markdown
from benchmarks.common import cell, lesion_slice, median_ms, with_noise
from cers.case import Geometry, Volume, acquisition_plane

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("value, words", [(None, ""), (0.01234, "0.0123"), (12.34, "12.3"), (1234.5, "1234"), ("text", "text"), (7, "7")])
def test_figures_have_three_digits(value, words):
    assert cell(value) == words


def test_retrieval_prints_a_table_and_writes_json(tmp_path):
    file = tmp_path / "retrieval.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.retrieval", "--sizes", "100", "300", "--runs", "3", "--json", str(file)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    result = json.loads(file.read_text(encoding="utf-8"))
    assert "nearest 50, ms" in done.stdout and [row[0] for row in result["rows"]] == ["100", "300"]
    assert all(v > 0 for row in result["rows"] for v in row[1:]) and result["machine"]["threads"] == 1
    table = markdown(result).splitlines()
    assert table[0].startswith("| cases | nearest 50, ms |") and len(table) == 2 + 2 + 2


def test_results_page_has_a_place_for_every_benchmark():
    text = RESULTS.read_text(encoding="utf-8")
    blocks = {name: f"figures of {name}" for name in (*NAMES, "machine")}
    filled = fill(text, blocks)
    assert all(block in filled for block in blocks.values()) and fill(filled, blocks) == filled
    with pytest.raises(ValueError, match="markers"):
        fill(text, {"unheard": "of"})


def test_figures_of_two_machines_are_not_put_under_one_name(tmp_path, monkeypatch, capsys):
    page = tmp_path / "RESULTS.md"
    text = fill(RESULTS.read_text(encoding="utf-8"), {"machine": "Another processor, 64 cores."})
    page.write_text(text, encoding="utf-8")
    monkeypatch.setattr(runner, "RESULTS", page)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--write", "retrieval"])
    monkeypatch.setattr(runner, "subprocess", None)  # nothing is measured in vain
    with pytest.raises(SystemExit):
        runner.main()
    assert "of another machine" in capsys.readouterr().err and page.read_text(encoding="utf-8") == text


def test_noise_changes_the_image_a_little_and_repeatably():
    array = np.arange(3 * 8 * 9, dtype=np.int16).reshape(3, 8, 9)
    volume = Volume(array, Geometry(np.diag([1.0, 1, 5, 1]), array.shape), volume_id="a")
    one, same, other = (with_noise(volume, seed).array for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other) and np.abs(one - array).max() < 0.2 * array.std()


def test_lesion_slice_stays_where_it_was():
    array = np.random.default_rng(0).normal(size=(4, 8, 9))
    volume = Volume(array, Geometry(np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0, 0, 5, 6], [0, 0, 0, 1]]), array.shape))
    mask = np.zeros(array.shape, np.uint8)
    mask[1, 2:4, 2:4] = mask[2, 2:6, 2:6] = 1
    small = lesion_slice(volume, mask)
    assert np.array_equal(small.array[0], array[2]) and acquisition_plane(small.geometry) == "axial"
    assert np.allclose(small.geometry.ras((5, 6, 0)), volume.geometry.ras((5, 6, 2)))


def test_median_is_in_milliseconds():
    assert median_ms(lambda: time.sleep(0.02), 3) >= 19


def test_a_slab_stays_where_it_was_in_the_patient():
    """Slices averaged to thicker ones lie at the middle of what they were made of."""
    from benchmarks.planes import cut

    array = np.zeros((20, 8, 9), np.float32)
    array[6:10, 3:5, 4:7] = 100
    volume = Volume(array, Geometry(np.array([[-1.0, 0, 0, 3], [0, -1, 0, 4], [0.1, 0, 2, 6], [0, 0, 0, 1]]), array.shape))
    slab, inside = cut(volume, array > 0, 4, 17, 2)
    assert slab.array.shape == (6, 8, 9) and slab.geometry.spacing[2] == pytest.approx(2 * volume.geometry.spacing[2])
    assert inside.sum() == 2 * 2 * 3 and np.array_equal(inside, slab.array > 0)
    centres = [g.ras(np.argwhere(mask)[:, ::-1]).mean(0) for g, mask in ((volume.geometry, array > 0), (slab.geometry, inside))]
    assert np.allclose(*centres)
