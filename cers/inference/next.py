"""Which of the unlabelled volumes of a folder a person should label next, and why.

A volume helps most where the pool has nothing like it, where the two decoders disagree, and where the network is unsure; and only if the
list does not hold much the same scan already. The order is a greedy k-center selection (Sener and Savarese, ICLR 2018) weighted with that
need, so that each place goes to the volume that is both needed and unlike those above it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path

import numpy as np

from ..case import Geometry, PlaneView, Volume, acquisition_plane
from ..case.io import atomic_path, read_volume
from ..errors import Cancelled, CersError, InputError
from ..pool import Pool, Query, Selector, image_hash, thumbnail
from ..pool.arrays import UNREADABLE
from ..pool.folders import find_images
from ..rationale import TextEmbedder
from .model import Model

FORMAT = 1
SLICES = 24  # of a volume that are looked at; they are spread over it
LEAST_PIXELS = 4  # of the network's frame from which a slice counts as one where something was found
_UNSURE = 0.1  # from this probability on a pixel belongs to the region whose entropy is measured
_NOVEL = 0.2  # share of its need that a volume keeps which is just like one above it
_CACHE = ("derived", "next")


@dataclass
class Measurement:
    """What was measured of one volume; it holds for one model and is kept by the content of the file.

    vectors: (n, d) float32 unit image vectors of the slices where something was found, of all slices where nothing was.
    thumbnails: (n, 1024) float32; pictures: their hashes. ml: found, None of a single slice, or where voxels have no known size.
    disagreement: 1 - Dice of D_S and D_R over the volume; entropy: mean of the calibrated probability's over the region that might be
    lesion, in bits; both 0..1.
    """

    vectors: np.ndarray
    thumbnails: np.ndarray
    pictures: list[str]
    volume_id: str
    patient_id: str | None
    modality: str | None
    body_site: str | None
    plane: str
    found: bool
    ml: float | None
    disagreement: float
    entropy: float

    def save(self, path: Path) -> None:
        facts = {k: v for k, v in vars(self).items() if k not in ("vectors", "thumbnails")}
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                np.savez(file, vectors=self.vectors, thumbnails=self.thumbnails, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8))

    @classmethod
    def load(cls, path: Path) -> Measurement | None:
        """None where there is none, or it cannot be read: it is then measured again."""
        try:
            with np.load(path, allow_pickle=False) as data:
                facts = json.loads(data["facts"].tobytes())
                return cls(data["vectors"], data["thumbnails"], **facts)
        except (*UNREADABLE, TypeError):
            return None


@dataclass
class NextVolume:
    """One place of the list.

    path: below the folder; id: of its voxels and grid, as the pool names volumes. need, novelty, score: 0..1; like: the volume above that
    it resembles most.
    """

    path: str
    id: str
    score: float
    need: float
    coverage: float
    disagreement: float
    entropy: float
    novelty: float
    like: str | None
    found: bool
    ml: float | None
    reason: str


@dataclass
class NextReport:
    """volumes: best first. labelled: path -> why it needs no label; ids: path -> id of those of them that were looked at.

    faults: path -> what is wrong. measured: how many volumes were not known yet.
    """

    volumes: list[NextVolume] = field(default_factory=list)
    labelled: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    measured: int = 0

    def to_dict(self) -> dict:
        return asdict(self)


def rank_next(
    folder: str | PathLike,
    pool: Pool,
    model: Model,
    *,
    embedder: TextEmbedder | None = None,
    modality: str | None = None,
    body_site: str | None = None,
    cache: str | PathLike | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> NextReport:
    """Rank the volumes of a folder that are not in the pool by how much a label of each would help.

    What was measured of a volume is kept by the content of its file, so that a second run is quick and one that was stopped goes on. How
    well the pool covers it is looked up anew each time; disagreement and entropy stay as they were when it was measured.

    Args:
        folder: images lie in it or below it; those with a mask beside them count as labelled.
        modality, body_site: where the files do not say.
        cache: where measurements are kept; default inside the pool, nowhere if that cannot be written.

    Raises:
        InputError: no such folder, or no image in it. Cancelled. PoolError, ModelError: see ``Segmenter``.
    """
    from .segmenter import Segmenter

    folder = Path(folder)
    images, masked = find_images(folder, without=pool.folder)
    if not images and not masked:
        raise InputError(f"There is no image in '{folder}'. Choose a folder with NIfTI, NRRD, MetaImage or DICOM images.")
    say, report = progress or (lambda fraction, words: None), NextReport(labelled={p: "It has a mask beside it." for p in masked})
    place = _cache_folder(pool, cache)
    segmenter: Segmenter | None = None
    known: dict[str, Measurement] = {}
    for n, name in enumerate(images):
        if cancel and cancel():
            raise Cancelled()
        say(n / len(images), f"Looking at {name} ({n + 1} of {len(images)})")
        try:
            digest = _digest(folder / name)
            kept = place and place / f"{digest[:32]}-{_settings(model, modality, body_site)}.npz"
            found = Measurement.load(kept) if kept else None
            if found is None:
                volume = read_volume(folder / name)
                volume = replace(volume, modality=volume.modality or modality, body_site=volume.body_site or body_site)
                segmenter = segmenter or Segmenter(model, pool, text_embedder=embedder)
                found = measure(segmenter, volume, lambda f, m: say((n + f) / len(images), f"{m} ({n + 1} of {len(images)})"), cancel)
                report.measured += 1
                if kept:
                    found.save(kept)
        except Cancelled:
            raise
        except (CersError, OSError) as error:
            if not isinstance(error, (InputError, OSError)):  # the pool or the model: no other volume would fare better
                raise
            report.faults[name] = str(error) if isinstance(error, CersError) else f"The file cannot be read ({error.strerror or error})."
            continue
        if here := _cases(pool, found):
            report.labelled[name] = f"It is in the pool already ({here} case{'s' * (here > 1)})."
            report.ids[name] = found.volume_id
        else:
            known[name] = found
    selector = Selector(pool, model.hash, None)
    if known and len(pool):
        from .embedding import embed_pool

        if not pool.read_only:
            embed_pool(model, pool, embedder or TextEmbedder(model.config.text_encoder), None, cancel)
    coverage = {name: _coverage(selector, model, m) for name, m in known.items()}
    report.volumes = order(known, coverage)
    say(1.0, "Done")
    return report


def measure(segmenter, volume: Volume, progress=None, cancel=None) -> Measurement:
    """Segment a volume's slices, at most ``SLICES`` of them, and measure how sure the network is."""
    name = volume.volume_id or volume.content_hash[:16]
    thin = _thinned(volume, name)
    prediction = segmenter.segment(thin, "acquisition", progress=progress, cancel=cancel, influence=False)
    plane = next(iter(segmenter.session.planes.values()))
    first, second = plane.plain.amax(1) > 0.5, plane.fused.amax(1) > 0.5  # (n, size, size)
    both = int(first.sum() + second.sum())
    p = plane.fused.amax(1)
    unsure = p[(p > _UNSURE) | first].double().clamp(1e-6, 1 - 1e-6)
    entropy = float(-(unsure * unsure.log2() + (1 - unsure) * (1 - unsure).log2()).mean()) if len(unsure) else 0.0
    lesion = [i for i in plane.pooled if int((first[i] | second[i]).sum()) >= LEAST_PIXELS]
    rows = sorted(lesion or plane.pooled)
    if not rows:
        raise InputError(f"'{volume.name}' shows no part of a body, so there is nothing to label.")
    vectors = np.stack([plane.pooled[i] for i in rows]).astype(np.float32)
    return Measurement(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        np.stack([thumbnail(plane.raw[i]) for i in rows]),
        [image_hash(np.ascontiguousarray(plane.raw[i])) for i in rows],
        name,
        volume.patient_id,
        volume.modality,
        volume.body_site,
        plane.name,
        bool(lesion),
        round(sum(ml.values()), 3) if (ml := prediction.volume_ml) is not None else None,
        1 - 2 * int((first & second).sum()) / both if both else 0.0,
        entropy,
    )


def order(known: dict[str, Measurement], coverage: dict[str, float]) -> list[NextVolume]:
    """The list, best first, each place with its reason."""
    names = sorted(known)
    if not names:
        return []
    centres = np.stack([known[n].vectors.mean(0) for n in names])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    far = np.clip(1 - centres @ centres.T, 0, 2)  # cosine distance
    typical = float(np.median(far[np.triu_indices(len(names), 1)])) if len(names) > 1 else 1.0
    need = np.array([_need(coverage[n], known[n]) for n in names])
    novelty, nearest = np.ones(len(names)), np.full(len(names), -1)
    left, out = list(range(len(names))), []
    while left:
        score = need * (_NOVEL + (1 - _NOVEL) * novelty)
        best = min(left, key=lambda i: (-round(float(score[i]), 6), names[i]))
        left.remove(best)
        out.append(_place(names, known[names[best]], coverage[names[best]], best, need, novelty, nearest, far, float(score[best])))
        for i in left:
            own = min(1.0, float(far[i, best]) / max(typical, 1e-6))
            if own < novelty[i]:
                novelty[i], nearest[i] = own, best
    return out


def _need(coverage: float, found: Measurement) -> float:
    """0..1: half what the pool lacks, a quarter each what the decoders differ in and what the network is unsure of."""
    return 0.5 * (1 - coverage) + 0.25 * found.disagreement + 0.25 * found.entropy


def _place(names, found: Measurement, coverage: float, i: int, need, novelty, nearest, far, score: float) -> NextVolume:
    like = names[nearest[i]] if nearest[i] >= 0 and novelty[i] < 0.5 and far[i, nearest[i]] < 0.1 else None
    how = "hardly covers it" if coverage < 0.3 else "covers it in part" if coverage < 0.75 else "covers it well"
    words = [f"The pool {how} ({100 * coverage:.0f} %)."]
    if found.found:
        words.append(
            f"The two decoders differ in {100 * found.disagreement:.0f} % of what they found; "
            f"the network is {'very unsure' if found.entropy > 0.7 else 'unsure' if found.entropy > 0.4 else 'fairly sure'} "
            f"({found.entropy:.2f} bit)."
        )
    else:
        words.append("No lesion was found in it.")
    if like is not None:
        words.append(f"Much like {like} above (similarity {1 - far[i, nearest[i]]:.2f}).")
    return NextVolume(
        names[i],
        found.volume_id,
        round(score, 4),
        round(float(need[i]), 4),
        round(coverage, 4),
        round(found.disagreement, 4),
        round(found.entropy, 4),
        round(float(novelty[i]), 4),
        like,
        found.found,
        found.ml,
        " ".join(words),
    )


def _coverage(selector: Selector, model: Model, found: Measurement) -> float:
    """Mean over the slices of how well the pool covers them now, 0..1."""
    values = []
    for vector, small, picture in zip(found.vectors, found.thumbnails, found.pictures):
        query = Query(
            vector,
            small,
            modality=found.modality or model.config.modality,
            body_site=found.body_site or model.config.body_site,
            plane=found.plane,
            patient_id=found.patient_id,
            volume_id=found.volume_id,
            content_hash=picture,
        )
        values.append(selector.select(query, model.selection).coverage.value)
    return float(np.mean(values))


def _cases(pool: Pool, found: Measurement) -> int:
    """How many cases of the pool come from this volume."""
    return len({c["id"] for c in pool.list(volume_id=found.volume_id)} | {i for picture in found.pictures for i in pool.find(picture)})


def _thinned(volume: Volume, name: str) -> Volume:
    """The volume with every n-th slice of its acquisition plane; slices keep their pixels and places."""
    plane = acquisition_plane(volume.geometry)
    axis = PlaneView(volume.geometry, plane).axes[0]  # of (k, j, i)
    step = -(-volume.array.shape[axis] // SLICES)
    if step == 1:
        return replace(volume, volume_id=name)
    array = volume.array[tuple(slice(step // 2, None, step) if a == axis else slice(None) for a in range(3))]
    matrix, start = volume.geometry.ijkToRAS.copy(), np.zeros(3)
    start[2 - axis] = step // 2
    matrix[:3, 3] = volume.geometry.ras(start)
    matrix[:3, 2 - axis] *= step
    return replace(volume, array=array, geometry=Geometry(matrix, array.shape), volume_id=name)


def _cache_folder(pool: Pool, wanted: str | PathLike | None) -> Path | None:
    if wanted is None and pool.read_only:
        return None
    place = pool.folder.joinpath(*_CACHE) if wanted is None else Path(wanted)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder '{place}' for what was measured cannot be made ({error.strerror}). Choose another one.") from error
    return place


def _settings(model: Model, modality: str | None, body_site: str | None) -> str:
    return hashlib.sha256(json.dumps([FORMAT, SLICES, model.hash, modality, body_site]).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a DICOM folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()
