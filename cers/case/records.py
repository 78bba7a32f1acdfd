"""One record per thing, used everywhere. All turn into plain JSON with ``to_dict`` and back with ``from_dict`` where both make sense."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

import numpy as np

from ..errors import InputError
from .geometry import Geometry, PlaneView

PARTS = ("texture", "boundary", "context", "summary")
LARGEST = 1e30  # of an image's values; 3.4e38, float32's last, marks missing voxels in some formats
LEAST_SLICES, LEAST_MM = 12, 130.0  # of a volume along each of its axes, for three planes to be worth while


@dataclass
class Volume:
    """An image in the patient.

    Args:
        array: (k, j, i), any real dtype, finite.
        geometry: its grid.
        modality: DICOM modality code ("MR", "CT", ...), None if not known.
        body_site: lower-case word ("brain", "lung", ...), None if not known.
        patient_id, volume_id: pseudonyms used only to keep a query from meeting itself; never a name. None if not known.
        spacing_known: False for PNG/JPG, whose pixels have no size, and where a program put one in; lengths are then given in pixels.

    Raises:
        InputError: not three-dimensional, empty, complex or RGB, or any value NaN, infinite or beyond ±1e30.
    """

    array: np.ndarray
    geometry: Geometry
    name: str = "volume"
    modality: str | None = None
    body_site: str | None = None
    patient_id: str | None = None
    volume_id: str | None = None
    spacing_known: bool = True

    def __post_init__(self):
        array = self.array = np.asarray(self.array)
        if array.ndim != 3 or array.shape != self.geometry.shape:
            raise InputError(
                f"One scalar 3-D volume is needed; this image has the shape {array.shape}. "
                "For a 4-D or colour image, take out one time point or channel first."
            )
        if array.dtype.kind not in "biuf":
            raise InputError(f"The image's voxels are of type {array.dtype}; real numbers are needed.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                "The image contains voxels that are not numbers (NaN or infinite). Replace them, for instance by zero, and try again."
            )
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if low == high:
            raise InputError("The image is empty: every voxel has the same value.")
        if max(-low, high) > LARGEST:
            raise InputError(
                f"The image has values as large as {max(low, high, key=abs):.2g}, which are no intensities but as a rule stand for "
                "missing voxels. Replace them, for instance by zero, and try again."
            )

    @property
    def is_picture(self) -> bool:
        """A single slice without a size of its pixels: its geometry does not say along which plane it was taken."""
        return not self.spacing_known and self.geometry.shape[0] == 1

    @property
    def worth_crossing(self) -> bool:
        """Whether it reaches far enough in every direction for each of the three planes to show anatomy, not a strip of it."""
        sizes = zip(self.geometry.shape[::-1], self.geometry.spacing)
        return self.spacing_known and all(n >= LEAST_SLICES and n * mm >= LEAST_MM for n, mm in sizes)

    @property
    def content_hash(self) -> str:
        """SHA-256 over voxels and where they lie; two equal volumes have one hash, whatever their files and the order of their axes.

        3D Slicer turns the axes of a left-handed file when it loads it; the same file read here keeps them.
        """
        view = PlaneView(self.geometry, "axial")
        array = view.slices(self.array)
        h = hashlib.sha256()
        h.update(str((self.array.dtype.str, array.shape)).encode())
        h.update((np.round(view.slice_ijkToRAS(0), 4) + 0.0).tobytes())  # + 0.0: there is a minus zero, too
        for part in array:
            h.update(np.ascontiguousarray(part).tobytes())
        return h.hexdigest()


@dataclass(frozen=True)
class Statement:
    """One sentence of a rationale and the measurement it rests on.

    ``descriptor`` and ``value`` are None for a sentence that a person or an LLM wrote without a measurement.
    ``short`` says the same in few words, to be embedded; None where ``text`` itself is.
    ``note`` says why this measured sentence stands in place of another writer's, or, where it begins with ``UNMEASURED``, which words of a
    writer's own sentence claim what nobody measured; None where neither is so.
    """

    UNMEASURED: ClassVar[str] = "not measured"

    part: str
    text: str
    descriptor: str | None = None
    value: float | None = None
    unit: str | None = None
    short: str | None = None
    note: str | None = None

    @property
    def unmeasured(self) -> bool:
        return (self.note or "").startswith(self.UNMEASURED)

    @property
    def shown(self) -> str:
        """The text as readers see it: what was not measured is said."""
        return f"{self.text} [{self.note}]" if self.unmeasured else self.text


@dataclass
class Rationale:
    """Chain-of-thought rationale (CoT) of one lesion slice: texture, boundary, context, summary.

    Args:
        statements: in reading order; each belongs to one of ``PARTS``.
        descriptors: every measured number by name (units in ``cers.rationale.descriptors.DESCRIPTORS``); None where undefined.
        writer: "measured", "imported", "person", or a model id. version: of the writer's rules or prompt.
    """

    statements: list[Statement]
    descriptors: dict[str, float | None] = field(default_factory=dict)
    writer: str = "measured"
    version: str = "1"

    def part(self, name: str) -> str:
        """The sentences of one part as one text, as readers see them."""
        if name not in PARTS:
            raise KeyError(name)
        return " ".join(s.shown for s in self.statements if s.part == name)

    @property
    def text(self) -> str:
        """The whole rationale as four labelled lines, as people read it."""
        return "\n".join(f"{p.capitalize()}: {self.part(p)}" for p in PARTS if self.part(p))

    @property
    def compact(self) -> str:
        """The same four lines in the short form of each sentence that has one; this is what is embedded."""
        lines = {p: " ".join(s.short or s.text for s in self.statements if s.part == p) for p in PARTS}
        return "\n".join(f"{p.capitalize()}: {line}" for p, line in lines.items() if line)

    def to_dict(self) -> dict:
        out = {**asdict(self), "text": self.text}
        for statement in out["statements"]:
            if statement["note"] is None:  # most have none, and records without it keep the hashes they had
                del statement["note"]
        return out

    @classmethod
    def from_dict(cls, d: dict) -> Rationale:
        """Raises KeyError, TypeError or ValueError where ``d`` is not a rationale's."""
        out = cls([Statement(**s) for s in d["statements"]], dict(d.get("descriptors", {})), d["writer"], d["version"])
        words = [
            out.writer,
            out.version,
            *(w for s in out.statements for w in (s.text, s.descriptor or "", s.unit or "", s.short or "", s.note or "")),
        ]
        if any(s.part not in PARTS for s in out.statements) or not all(isinstance(w, str) for w in words):
            raise ValueError("it holds something else than sentences of its four parts")
        if not all(n is None or math.isfinite(n) for n in (*out.descriptors.values(), *(s.value for s in out.statements))):
            raise ValueError("a measurement in it is not a finite number")
        return out


def _finite(value, shape: tuple[int, ...]) -> bool:
    """Whether a value is an array of finite real numbers of a shape."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return False
    return array.shape == shape and array.dtype.kind in "iuf" and bool(np.isfinite(array).all())


@dataclass
class Case:
    """One expert-annotated reference: a display slice with its mask. One record, one id, everywhere.

    Args:
        image: (rows, columns) raw values in display orientation (see ``PlaneView``).
        mask: (rows, columns) uint8 label map; 0 is background, other values are keys of ``labels``.
        labels: value -> name, for instance {1: "tumor"}.
        id: given by the pool when the case is added (from the content hash), "" before.
        spacing: (row, column) in mm, None where not known. ijkToRAS: (4, 4) of the slice, None where not known.
        plane, slice_index: where in its volume; None for a lone picture.
        patient_id, volume_id, group: pseudonyms; a query never gets a reference that shares any of them.
        source: file name or other provenance, without patient data. annotator, created (ISO 8601 UTC).
        review: "unreviewed", "approved", "flagged" or "excluded".
    """

    image: np.ndarray
    mask: np.ndarray
    labels: dict[int, str]
    id: str = ""
    spacing: tuple[float, float] | None = None
    ijkToRAS: np.ndarray | None = None
    plane: str | None = None
    slice_index: int | None = None
    patient_id: str | None = None
    volume_id: str | None = None
    group: str | None = None
    modality: str | None = None
    body_site: str | None = None
    diagnosis: str | None = None
    source: str | None = None
    annotator: str | None = None
    created: str | None = None
    review: str = "unreviewed"
    rationale: Rationale | None = None

    def __post_init__(self):
        self.image, self.mask = np.asarray(self.image), np.asarray(self.mask)
        if self.image.ndim != 2 or self.image.shape != self.mask.shape:
            raise InputError(f"Image and mask of a case must be 2-D and of one size; they are {self.image.shape} and {self.mask.shape}.")
        if self.spacing is not None and not (_finite(self.spacing, (2,)) and min(self.spacing) > 0):
            raise InputError(f"The spacing of a case must be two sizes in mm, not {self.spacing!r}.")
        if self.ijkToRAS is not None and not _finite(self.ijkToRAS, (4, 4)):
            raise InputError("The matrix ijkToRAS of a case must be 4 x 4 finite numbers.")
        self.ijkToRAS = None if self.ijkToRAS is None else np.asarray(self.ijkToRAS, float)
        if self.image.dtype.kind == "f" and not np.isfinite(self.image).all():
            raise InputError("The case's image contains values that are not numbers (NaN or infinite).")
        values = {int(v) for v in np.unique(self.mask)} - {0}
        self.labels = {int(k): str(v) for k, v in self.labels.items()}
        if values - set(self.labels):
            raise InputError(f"The mask contains the label values {sorted(values - set(self.labels))} that have no name.")
        self.mask = self.mask.astype(np.uint8)

    @property
    def content_hash(self) -> str:
        """SHA-256 over image, mask and label names: the same annotated picture has one hash."""
        h = hashlib.sha256()
        h.update(str((self.image.dtype.str, self.image.shape, sorted(self.labels.items()))).encode())
        h.update(np.ascontiguousarray(self.image).tobytes())
        h.update(np.ascontiguousarray(self.mask).tobytes())
        return h.hexdigest()

    def metadata(self) -> dict:
        """All fields but the arrays, as JSON."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("image", "mask")}
        out["labels"] = {str(k): v for k, v in self.labels.items()}
        out["spacing"] = None if self.spacing is None else [float(s) for s in self.spacing]
        out["ijkToRAS"] = None if self.ijkToRAS is None else np.asarray(self.ijkToRAS, float).tolist()
        out["rationale"] = None if self.rationale is None else self.rationale.to_dict()
        out["shape"] = list(self.image.shape)
        return out


@dataclass
class Reference:
    """A selected reference as it was used for one slice.

    visual: cosine of image embeddings, -1..1. cot: CoT consistency 0..1, None where the query has no rationale (nothing found in pass 1).
    weight: the share of D_R's evidence that the gate gave this reference, 0..1; all weights plus the null reference's sum to 1.
    influence: how much the slice's probabilities change when this reference alone is left out, 0 (not at all) to 1, as 1 - soft Dice with
        squared sums; None if not measured.
    agreement: how well the slice's other references explain this one's mask, -1..1 (``Evidence.agreement``); None where it is the only one.
        Of low agreement it counts less, or not at all, unless pinned.
    """

    id: str
    rank: int
    visual: float
    cot: float | None = None
    weight: float | None = None
    influence: float | None = None
    pinned: bool = False
    agreement: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class Rejection:
    """A candidate that was not used, and why. stage: exclusion, compatibility, morphology, cot, limit or dropped (by the user)."""

    id: str
    stage: str
    reason: str
    visual: float | None = None
    cot: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)


WELL_COVERED = 0.9  # coverage from which on a slice is covered "well", not "in part"


@dataclass
class Coverage:
    """How well the pool covers a query. value 0..1 (calibrated similarity of the closest admissible case); message in plain words."""

    value: float
    covered: bool
    message: str

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class Evidence:
    """What one slice was decoded with.

    index: display slice of ``plane`` (see ``PlaneView``); array_index: the same along the volume's own slice axis.
    disagreement: 1 - Dice of the plain decoder's and the evidence decoder's masks, 0..1. confidence: mean calibrated
    probability inside the mask, None without one. pixels: size of the final mask in the slice. left_out_runs: what this
    plane shows and the planes together do not, so that the final mask does not hold it (see ``to_runs``); none where one plane was
    decoded. left_out: how many pixels that is. marked: whether one of the decoders marks anything here; where none does, a mask comes
    from the other planes, and disagreement says nothing. rationale: measured under the final mask, None without one. first_rationale: under
    the first mask (D_S), by which the references were chosen, None where it shows too little to be described. first_differs: where the two
    are opposite, in words.
    """

    plane: str
    index: int
    array_index: int
    references: list[Reference]
    rejected: list[Rejection]
    coverage: Coverage
    rationale: Rationale | None = None
    pixels: int = 0
    disagreement: float = 0.0
    confidence: float | None = None
    left_out_runs: list[int] = field(default_factory=list)
    marked: bool = True
    first_rationale: Rationale | None = None
    first_differs: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        return sum(self.left_out_runs[1::2])

    def to_dict(self) -> dict:
        out = {f.name: getattr(self, f.name) for f in fields(self)} | {"left_out": self.left_out}
        out["references"] = [r.to_dict() for r in self.references]
        out["rejected"] = [r.to_dict() for r in self.rejected]
        out["coverage"] = self.coverage.to_dict()
        for name in ("rationale", "first_rationale"):
            value = getattr(self, name)
            out[name] = None if value is None else value.to_dict()
        return out


@dataclass
class Prediction:
    """The result for one volume, in the input's own grid.

    labelmap: (k, j, i) uint8. probabilities: (labels, k, j, i) float16, calibrated; cut at the threshold they are not always the label map,
    see ``cut``. labels: value -> name.
    evidence: one per slice of the decoded planes. seconds: per step. provenance: hashes of image, model and pool, and all settings.
    spacing_known: as of the volume.
    """

    labelmap: np.ndarray
    probabilities: np.ndarray
    geometry: Geometry
    labels: dict[int, str]
    evidence: list[Evidence]
    seconds: dict[str, float]
    provenance: dict
    spacing_known: bool = True

    @property
    def pixels(self) -> dict[str, int]:
        """Voxels of each label; of a single slice its pixels."""
        return {name: int(np.count_nonzero(self.labelmap == value)) for value, name in self.labels.items()}

    @property
    def volume_ml(self) -> dict[str, float] | None:
        """Volume of each label in ml; None of a single slice, which has an area only, and where voxels have no known size."""
        if not self.spacing_known or self.geometry.single:
            return None
        return {name: n * self.geometry.voxel_ml for name, n in self.pixels.items()}

    @property
    def area_mm2(self) -> dict[str, float] | None:
        """Area of each label in mm² in a single slice with pixels of a known size, else None."""
        if not self.spacing_known or not self.geometry.single:
            return None
        return {name: n * self.geometry.pixel_mm2 for name, n in self.pixels.items()}

    @property
    def picture_share(self) -> dict[str, float] | None:
        """Share of a single slice, 0..1, that each label takes; else None."""
        return {name: n / self.labelmap.size for name, n in self.pixels.items()} if self.geometry.single else None

    def sizes(self) -> dict:
        """How much was found, as JSON: what was not measured is None."""
        names = ("spacing_known", "pixels", "volume_ml", "area_mm2", "picture_share")
        return {name: getattr(self, name) for name in names}

    def cut(self) -> dict | None:
        """How the label map differs from the probabilities cut at the model's threshold, in voxels; None where that is not known.

        Where planes are fused, a part is kept or left out as a whole and ends where the planes with square pixels end it (``fuse_planes``);
        small parts may be dropped, and a slice that is decoded again changes the label map only. ``below``: voxels of the label map
        whose probability is below the threshold; ``above``: voxels that reach it and are not in the label map.
        """
        threshold = self.provenance.get("settings", {}).get("threshold")
        if threshold is None:
            return None
        below = above = 0
        for k in range(len(self.labelmap)):  # one by one: volumes are large
            reaches, inside = (self.probabilities[:, k].astype(np.float32) >= threshold).any(0), self.labelmap[k] > 0
            below += int(np.count_nonzero(inside & ~reaches))
            above += int(np.count_nonzero(reaches & ~inside))
        return {"threshold": threshold, "below": below, "above": above}

    def summary(self) -> dict:
        """Everything but the arrays, as JSON."""
        return {
            "labels": {str(k): v for k, v in self.labels.items()},
            **self.sizes(),
            "cut": self.cut(),
            "seconds": self.seconds,
            "slices": [e.to_dict() for e in self.evidence],
            "provenance": self.provenance,
        }
