"""The measured section of a model card comes from result files and leaves the rest of the card alone."""

from __future__ import annotations

import json

import pytest

from cers.errors import InputError
from cers.evaluation.card import END, START, update_card
from cers.evaluation.items import find_items
from cers.evaluation.run import Evaluation

PROSE = "# My model\n\nWritten by hand, | with *marks* \\1.\n"
ROW = {"value": 0.8123, "low": 0.79, "high": 0.8345, "n": 12}


@pytest.fixture
def result(pictures, tmp_path):
    found = Evaluation(find_items(*pictures, predictions=tmp_path / "moved")).run(name="Test | set <b>")
    return {**found, "model": "abc"}


def save(path, value):
    path.write_text(json.dumps(value))
    return path


def test_the_section_is_added_and_then_replaced(result, tmp_path):
    file = save(tmp_path / "r.json", result)
    card = update_card(PROSE, "abc", [file])
    assert card.startswith(PROSE.rstrip()) and card.count(START) == card.count(END) == 1
    mean = result["mean"]["dice"]
    assert f"| Dice | {mean['value']:.3f} [{mean['low']:.3f}, {mean['high']:.3f}] | 4 |" in card
    assert "### Test / set (b)" in card and "`abc`" in card
    moved = card + "\nMore by hand, after it.\n"
    result["mean"]["dice"] = ROW
    again = update_card(moved, "abc", [save(file, result)])
    assert "0.812 [0.790, 0.835]" in again and f"{mean['value']:.3f} [" not in again.partition("IoU")[0]
    for part in (0, 2):
        assert again.split(START)[0] == moved.split(START)[0] and again.split(END)[1] == moved.split(END)[1]
    assert update_card(again, "abc", [file]) == again


def test_an_empty_card_gets_the_section(result, tmp_path):
    assert update_card("", "abc", [save(tmp_path / "r.json", result)]).startswith("## Measured\n")


def test_the_accuracy_benchmark_is_taken_too(result, tmp_path):
    cases = [{"coverage": c, "retrieved": d} for c, d in ((0.1, 0.2), (0.3, 0.1), (0.8, 0.9), (0.9, 0.7))]
    none = {"value": None, "low": None, "high": None, "n": 0}
    accuracy = {
        "model": "abc",
        "cases": cases,
        "pictures": {"retrieved": ROW, "retrieved, glioma": none},
        "calibration": {"before": ROW, "after": {**ROW, "value": 0.1}},
        "volumes": [
            {
                "volume": "brain1",
                "planes": "three",
                "retrieved": 0.5,
                "surface_dice": 0.7,
                "hd95": None,
                "null": 0.4,
                "ml": 12.34,
                "expert_ml": 10.0,
            }
        ],
    }
    card = update_card(PROSE, "abc", [save(tmp_path / "a.json", accuracy), save(tmp_path / "r.json", result)])
    assert "| retrieved | 0.812 [0.790, 0.835] | 12 |" in card and "| brain1 | three | 0.500 | 0.700 | - | 0.400 | 12.3 | 10.0 |" in card
    assert "| coverage as detector of Dice < 0.5, AUROC (2 failures) | 1.000 | 4 |" in card
    assert "| expected calibration error near the lesion, after the temperature | 0.100 [" in card and "agreement" not in card
    assert "glioma" not in card and card.index("brain1") < card.index("### Test / set")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: r.pop("rules"), "is damaged"),
        (lambda r: r["mean"].update(dice=None), "is damaged"),
        (lambda r: r["mean"]["dice"].update(value="0.9"), "is damaged"),
        (lambda r: r["mean"]["dice"].update(value=float("nan")), "is not JSON"),
    ],
)
def test_a_damaged_result_leaves_the_card_as_it_is(result, tmp_path, change, words):
    change(result)
    with pytest.raises(InputError, match=words):
        update_card(PROSE, "abc", [save(tmp_path / "r.json", result)])


def test_what_cannot_be_put_into_the_card(result, tmp_path):
    file = save(tmp_path / "r.json", result)
    with pytest.raises(InputError, match="measured with the model abc, not with this one"):
        update_card(PROSE, "other", [file])
    with pytest.raises(InputError, match="with no model of CERS"):
        update_card(PROSE, "abc", [save(tmp_path / "p.json", {**result, "model": None})])
    with pytest.raises(InputError, match="not a result of"):
        update_card(PROSE, "abc", [save(tmp_path / "x.json", {"model": "abc"})])
    with pytest.raises(InputError, match="once each"):
        update_card(f"{START}{END}{START}{END}", "abc", [file])
    with pytest.raises(InputError, match="once each"):
        update_card(f"{END} {START}", "abc", [file])
    with pytest.raises(InputError, match="No result file"):
        update_card(PROSE, "abc", [])
