"""The evidence report: complete, self-contained, safe, and honest where there is no evidence."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import phantom
import pytest

from cers.case import Coverage, Evidence, PlaneView, Prediction, Reference, Rejection, Volume
from cers.case.runs import to_runs
from cers.errors import InputError
from cers.inference.pictures import display, outlines, svg_path
from cers.inference.report import write_report
from cers.pool import Pool
from cers.rationale import describe


class Checker(HTMLParser):
    """Balanced tags, unique ids, and every address it uses."""

    VOID = {"meta", "link", "br", "img", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags, self.words = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"{tag} has the script attribute {name}"
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "action"):
                self.addresses.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def read(path) -> tuple[Checker, str]:
    text = path.read_text(encoding="utf-8")
    page = Checker()
    page.feed(text)
    assert not page.open and len(set(page.ids)) == len(page.ids)
    # a board is laid out by its number of references; without it its picture fills the page, and what is said of it lies far below
    assert text.count('class="board"') == len(re.findall(r'class="board" style="--n:\d+"', text))
    assert not {"script", "iframe", "object", "embed", "form", "link"} & set(page.tags)
    for address in page.addresses:
        assert address.startswith("data:image/png;base64,") or (address.startswith("#") and address[1:] in page.ids), address
    assert "default-src 'none'" in text
    return page, " ".join(" ".join(page.words).split())


def prediction(pool_ids, *, volume: Volume | None = None, mask=None, labels=None, covered=True) -> tuple[Prediction, Volume]:
    volume = volume or phantom.volume(name="<script>alert(1)</script> & co")
    mask = phantom.head()[1] if mask is None else mask
    view = PlaneView(volume.geometry, "axial")
    evidence = []
    for n, (image, part) in enumerate(zip(view.slices(volume.array), view.slices(mask))):
        references = (
            [Reference(i, rank, 0.91 - rank / 100, 0.8, 0.2, 0.05, rank == 2) for rank, i in enumerate(pool_ids, 1)] if covered else []
        )
        rejected = [Rejection("f" * 16, "cot", "Its rationale contradicts: <b>dark</b> against bright.", 0.87, 0.31)]
        coverage = (
            Coverage(0.9, True, "The pool covers this slice well.") if covered else Coverage(0.1, False, "No close case in this pool.")
        )
        evidence.append(
            Evidence(
                "axial",
                n,
                view.array_index(n),
                references,
                rejected,
                coverage,
                describe(image, part > 0, view.spacing, modality="MR") if part.any() else None,
                int((part > 0).sum()),
                0.1,
                0.8 if part.any() else None,
            )
        )
    labels = labels or {1: "tumor"}
    probabilities = np.stack([(mask == v).astype(np.float16) for v in labels])
    return (
        Prediction(
            mask,
            probabilities,
            volume.geometry,
            labels,
            evidence,
            {"total": 1.0},
            {"cers": "0.1.0", "image": "abc", "settings": {"planes": "acquisition"}},
        ),
        volume,
    )


@pytest.fixture
def opened(filled_pool):
    with Pool.open(filled_pool) as pool:
        yield pool


def test_a_report_shows_everything_and_runs_nothing(opened, tmp_path):
    ids = opened.ids()[:5]
    result, volume = prediction(ids)
    next(e for e in result.evidence if e.pixels).references[0].influence = 0.0003
    write_report(tmp_path / "r.html", result, volume, opened)
    page, words = read(tmp_path / "r.html")
    assert "Influence <0.01" in words and "Influence 0.05" in words and "Influence 0.00" not in words
    assert "Not for clinical use." in words and "<script>alert(1)</script> & co" in words and "<meningioma> & co" in words
    assert "Its rationale contradicts: <b>dark</b> against bright." in words and "pinned" in words
    for part in (
        "Texture",
        "Boundary",
        "Context",
        "Summary",
        "Visual",
        "CoT",
        "Agreement",
        "Weight",
        "Influence",
        "Provenance",
        "measured under the contour shown",
    ):
        assert part in words
    for identifier in ids:
        assert identifier in words
    assert f"{result.volume_ml['tumor']:.2f} ml" in words
    slices = [e for e in result.evidence if e.pixels]
    positions = [words.index(f"Axial slice {e.index + 1} of 8") for e in sorted(slices, key=lambda e: -e.pixels)]
    assert positions == sorted(positions)  # the largest lesion comes first
    pictures = [a for a in page.addresses if a.startswith("data:")]
    assert len(pictures) == len(slices) + len(ids)  # each once, however often it is shown
    assert all(base64.b64decode(p.split(",")[1]).startswith(b"\x89PNG") for p in pictures)


def test_what_one_plane_alone_shows_is_drawn_in_dashes(opened, tmp_path):
    result, volume = prediction(opened.ids()[:2])
    write_report(tmp_path / "before.html", result, volume, opened)
    assert "stroke-dasharray" not in (tmp_path / "before.html").read_text(encoding="utf-8")
    part = np.zeros(volume.array.shape[1:], bool)
    part[4:9, 3:8] = True
    for n, e in enumerate(result.evidence[:5]):
        e.left_out_runs = to_runs(part[:, : 8 - n])
    write_report(tmp_path / "r.html", result, volume, opened)
    page, words = read(tmp_path / "r.html")
    area = 25 * np.prod(PlaneView(volume.geometry, "axial").spacing) / 100
    assert "Left out of the mask in 5 slices" in words and f"{area:.2f} cm²" in words and "Dashed: shown by this plane, left out" in words
    assert "All of them: axial 1, 2, 3, 4, 5." in words
    assert (tmp_path / "r.html").read_text(encoding="utf-8").count("stroke-dasharray") >= 1
    nothing, volume = prediction(opened.ids()[:2], mask=np.zeros(volume.array.shape, np.uint8))
    nothing.evidence[0].left_out_runs = to_runs(part)
    write_report(tmp_path / "n.html", nothing, volume, opened)
    assert "What single planes show is not borne out by the others" in read(tmp_path / "n.html")[1]


def test_no_close_case_is_said(opened, tmp_path):
    result, volume = prediction([], covered=False)
    write_report(tmp_path / "r.html", result, volume, opened)
    assert "No close case in this pool" in read(tmp_path / "r.html")[1]


def test_no_pool_and_no_lesion(tmp_path):
    result, volume = prediction([], covered=False)
    write_report(tmp_path / "r.html", result, volume, None)
    assert "No pool was open" in read(tmp_path / "r.html")[1]
    empty, volume = prediction([], mask=np.zeros(phantom.SHAPE, np.uint8), covered=False)
    write_report(tmp_path / "e.html", empty, volume, None)
    assert "No lesion was found" in read(tmp_path / "e.html")[1] and "does not prove" in read(tmp_path / "e.html")[1]
    empty.evidence = []
    write_report(tmp_path / "n.html", empty, volume, None)
    assert "No lesion was found" in read(tmp_path / "n.html")[1]


def test_a_case_that_is_gone_is_named(opened, tmp_path):
    result, volume = prediction(["0" * 16, opened.ids()[0]])
    written = write_report(tmp_path / "r.html", result, volume, opened)
    assert "Case not readable" in read(tmp_path / "r.html")[1]
    assert (written.cases, written.unreadable) == (2, 1) and "1 reference case of 2" in written.warning()
    whole, volume = prediction([opened.ids()[0]])
    assert write_report(tmp_path / "w.html", whole, volume, opened).warning() == ""


def test_several_labels_and_many_slices(opened, tmp_path):
    mask = phantom.head()[1]
    mask[:, :, 24:][mask[:, :, 24:] > 0] = 2
    mask[:, 30, 10:14] = 1
    result, volume = prediction(opened.ids()[:1], mask=mask, labels={1: "tumor", 2: "edema"})
    write_report(tmp_path / "r.html", result, volume, opened, title="Two", max_slices=2)
    page, words = read(tmp_path / "r.html")
    assert "Predicted: tumor" in words and "Predicted: edema" in words and "All slices with a lesion" in words
    assert sum(name.startswith("s-") for name in page.ids) == 2 and words.count("Axial slice") > 6


def test_a_picture_has_no_millimetres(opened, tmp_path):
    image, mask = phantom.head()
    from cers.case import Geometry

    volume = Volume(image[4:5], Geometry(np.diag([-1.0, -1, 1, 1]), (1, 64, 56)), name="photo", spacing_known=False)
    result, _ = prediction(opened.ids()[:1], volume=volume, mask=mask[4:5])
    result.spacing_known = False
    write_report(tmp_path / "r.html", result, volume, opened)
    words = read(tmp_path / "r.html")[1]
    assert f"{int(mask[4].sum())} pixels (" in words and "56 \u00d7 64 pixels" in words and "The picture" in words
    assert " ml" not in words and "the bar is 20 mm" not in words and "size of the pixels not known" in words


def test_a_huge_picture_is_shown_coarser_under_the_same_contour(opened, tmp_path, monkeypatch):
    from PIL import Image

    result, volume = prediction([])
    write_report(tmp_path / "r.html", result, volume, None)
    monkeypatch.setattr("cers.inference.pictures.MOST_PIXELS", 20)
    write_report(tmp_path / "small.html", result, volume, None)
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("r.html", "small.html")]
    sizes = [[Image.open(io.BytesIO(base64.b64decode(d))).size for d in re.findall(r"base64,([^\"]+)", text)] for text in texts]
    assert min(max(size) for size in sizes[0]) > 20 and {max(size) for size in sizes[1]} == {20}
    assert len({re.sub(r"base64,[^\"]+", "", text) for text in texts}) == 1  # what lies over it and how large it is stays


def test_it_is_written_whole_or_not_at_all(opened, tmp_path):
    result, volume = prediction([])
    with pytest.raises(InputError):
        write_report(tmp_path / "r.txt", result, volume, opened)
    result.labels = {}
    result.evidence[0].plane = "oblique"
    with pytest.raises(InputError):
        write_report(tmp_path / "r.html", result, volume, opened)
    assert not list(tmp_path.iterdir())


def area(points: np.ndarray) -> float:
    x, y = points.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@pytest.mark.parametrize("seed", range(6))
def test_outlines_enclose_the_mask(seed):
    """Signed areas add up to the mask, but for the cut corners; every outline is closed and stays on the mask's border."""
    mask = np.zeros((40, 50), bool)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        r, c = rng.integers(5, 30), rng.integers(5, 40)
        mask[r : r + rng.integers(2, 9), c : c + rng.integers(2, 9)] = True
    mask[12:30, 12:30] = True
    mask[18:22, 18:22] = False
    loops = outlines(mask)
    corners = sum(len(loop) for loop in loops)
    assert abs(sum(area(loop) for loop in loops) - mask.sum()) <= corners / 8 + 1e-9
    assert any(area(loop) < 0 for loop in loops)  # the hole


def test_outlines_of_odd_masks():
    assert outlines(np.zeros((4, 4))) == [] and svg_path(np.zeros((4, 4))) == ""
    assert len(outlines(np.ones((4, 4)))) == 1
    corner = np.zeros((4, 4), bool)
    corner[1, 1] = corner[2, 2] = True
    assert len(outlines(corner)) == 2  # two pixels that touch at a corner stay apart
    assert re.fullmatch(r"(M[\d. ]+(L[\d. ]+)+Z)+", svg_path(np.eye(5)))


def test_display_uses_the_networks_grey_scale():
    shown = display(phantom.head()[0], "MR")
    assert shown.dtype == np.uint8 and shown.shape == phantom.SHAPE and shown.min() == 0 and shown.max() == 255
    assert np.array_equal(display(phantom.head()[0][4:5], "MR")[0], display(phantom.head()[0][4], "MR"))
