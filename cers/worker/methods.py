"""What the worker's requests do. One model, one pool and the last segmented volume are held in memory."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ..case import Geometry, PlaneView, Prediction, Volume
from ..case.geometry import PLANES
from ..errors import InputError, ModelError, PoolError, ProtocolError
from .server import Job

_KEPT = 4  # label maps of earlier requests that stay readable


def params(**allowed):
    """Check a request's parameters before the method runs: name -> type or types; a name that ends in _ may not be left out."""
    required = {name.rstrip("_") for name in allowed if name.endswith("_")}
    types = {name.rstrip("_"): kind for name, kind in allowed.items()}

    def wrap(method):
        def checked(self, job: Job, given: dict) -> dict:
            for name, value in given.items():
                if name not in types:
                    raise ProtocolError(f"'{job.method}' has no parameter '{name}'. It takes {', '.join(types) or 'none'}.")
                wrong = isinstance(value, bool) and types[name] is not bool
                if value is not None and (wrong or not isinstance(value, types[name])):
                    raise ProtocolError(f"The parameter '{name}' of '{job.method}' has the wrong type ({type(value).__name__}).")
                if isinstance(value, str) and "\0" in value:  # no path and no name has one
                    raise ProtocolError(f"The parameter '{name}' of '{job.method}' holds a null character.")
            missing = [name for name in required if given.get(name) is None]
            if missing:
                raise ProtocolError(f"'{job.method}' needs the parameter '{missing[0]}'.")
            return method(self, job, given)

        return checked

    return wrap


class Methods:
    """The state of a worker and the methods that need more than the standard library.

    Args:
        folder: private folder for the arrays that go to the client.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = self.pool = self.segmenter = None
        self.volume: Volume | None = None
        self.prediction: Prediction | None = None
        self.map: tuple | None = None  # of the pool at work: (what it was made of, points, values)
        self.imported: dict | None = None  # what the last import or merge did
        self._embedder = self.writing = None
        self._embedder_path: object = ()
        self._count = 0
        self._written: dict[str, list[Path]] = {}

    def table(self) -> dict[str, Callable]:
        names = ("load_model", "open_pool", "segment", "resegment", "slice", "describe", "embed", "search", "case", "export_report")
        from .adding import add_case
        from .model_requests import TABLE as MODELS
        from .next_requests import TABLE as NEXT
        from .pool_requests import TABLE
        from .rationale_requests import TABLE as RATIONALES
        from .rationale_requests import Writing

        self.writing = Writing()

        return {
            **{name: getattr(self, name) for name in names},
            "add_case": partial(add_case, self),
            **{name: partial(method, self) for name, method in {**TABLE, **NEXT, **MODELS, **RATIONALES}.items()},
        }

    @params(path=str, device=str, threads=int)
    def load_model(self, job: Job, given: dict) -> dict:
        job.progress(0.0, "Loading the model")
        from ..inference import load_model
        from ..inference.device import choose_device, devices

        device = choose_device(given.get("device"))
        model = load_model(given.get("path"), device=device, threads=given.get("threads"))
        job.check()
        self.model, self.segmenter, self.volume, self.prediction = model, None, None, None
        job.progress(0.7, "Loading the text encoder")
        self._text().encode(["ready"])  # now, for loading it cannot be cancelled half-way through a segmentation
        return {
            "hash": model.hash,
            "labels": model.labels,
            "device": device,
            "devices": devices(),
            "name": model.config.name,
            "card": model.card,
            "modality": model.config.modality,
            "body_site": model.config.body_site,
        }

    @params(path=str, read_only=bool)
    def open_pool(self, job: Job, given: dict) -> dict:
        from ..pool import Pool

        path = given.get("path")
        pool = None if path is None else Pool.open(path, read_only=bool(given.get("read_only")))
        if self.pool is not None:
            self.pool.close()
        self.pool, self.segmenter, self.volume, self.prediction = pool, None, None, None
        return {
            "path": path,
            "cases": 0 if pool is None else len(pool),
            "hash": None if pool is None else pool.hash(),
            "read_only": False if pool is None else pool.read_only,
        }

    @params(
        image_=str,
        ijkToRAS_=list,
        name=str,
        modality=str,
        body_site=str,
        patient_id=str,
        volume_id=str,
        planes=str,
        text=str,
        influence=bool,
        spacing_known=bool,
        record=bool,
    )
    def segment(self, job: Job, given: dict) -> dict:
        array = self._load(given["image"], "image")
        volume = Volume(
            array,
            Geometry(_matrix(given["ijkToRAS"]), array.shape if array.ndim == 3 else (0, 0, 0)),
            **{key: given[key] for key in ("name", "modality", "body_site", "patient_id", "volume_id") if given.get(key)},
            spacing_known=given.get("spacing_known") is not False,
        )
        volume.volume_id = volume.volume_id or volume.content_hash[:16]
        segmenter = self._segmenter(job)
        self.volume = self.prediction = None
        prediction = segmenter.segment(
            volume,
            planes=given.get("planes") or "auto",
            text=given.get("text"),
            progress=job.progress,
            cancel=job.cancelled.is_set,
            influence=given.get("influence") is not False,
        )
        job.check()
        self.volume, self.prediction = volume, prediction
        if self.pool is not None and given.get("record") is not False:
            try:
                self.pool.record_uses(prediction.provenance["image"], self.model.hash, prediction.evidence)
            except PoolError as error:  # the mask is there all the same
                print(f"Where references were used could not be recorded: {error}", file=sys.stderr)
        return {**prediction.summary(), "labelmap": self._save("labelmap", prediction.labelmap)}

    @params(plane_=str, index_=int, pinned=list, dropped=list)
    def resegment(self, job: Job, given: dict) -> dict:
        from ..inference.shown import renew

        prediction, plane, index = self._slice(given)
        ids = {name: [str(i) for i in given.get(name) or []] for name in ("pinned", "dropped")}
        result = self._segmenter(job).resegment(index, plane, **ids)
        view = PlaneView(prediction.geometry, plane)
        changed = view.slices(prediction.labelmap)[index] != result.mask
        view.slices(prediction.labelmap)[index] = result.mask  # so that a report shows what the user sees
        crossed = self.segmenter.crossed(prediction, plane, index, changed)
        prediction.evidence = renew(prediction.evidence, [result.evidence, *crossed])
        return {
            "mask": self._save(f"mask-{plane}-{index}", result.mask.astype(np.uint8)),
            "evidence": result.evidence.to_dict(),
            "crossed": [e.to_dict() for e in crossed],
        }

    @params(plane_=str, index_=int)
    def slice(self, job: Job, given: dict) -> dict:
        from ..inference.pictures import display

        prediction, plane, index = self._slice(given, decoded=False)
        view = PlaneView(prediction.geometry, plane)
        picture = display(view.slices(self.volume.array), self.volume.modality)[index]
        return {
            "image": self._save(f"slice-{plane}-{index}", picture),
            "mask": self._save(f"slicemask-{plane}-{index}", view.slices(prediction.labelmap)[index]),
            "spacing": list(view.spacing) if self.volume.spacing_known else None,
        }

    @params(image_=str, mask_=str, spacing=list, modality=str, plane=str)
    def describe(self, job: Job, given: dict) -> dict:
        from ..rationale import describe

        image, mask = self._load(given["image"], "image"), self._load(given["mask"], "mask")
        if image.ndim != 2 or image.shape != mask.shape:
            raise InputError("Image and mask must be 2-D and of one size.")
        if given.get("plane") not in (None, *PLANES):
            raise InputError(f"Plane '{given['plane']}' is not known. Use one of {', '.join(PLANES)}.")
        rationale = describe(image, mask > 0, _spacing(given.get("spacing")), modality=given.get("modality"), plane=given.get("plane"))
        return {"rationale": rationale.to_dict()}

    @params(texts=list)
    def embed(self, job: Job, given: dict) -> dict:
        """Vectors of texts; without texts, the pool's vectors are brought up to date."""
        if given.get("texts") is not None:
            texts = given["texts"]
            if not texts or not all(isinstance(t, str) for t in texts):
                raise ProtocolError("'texts' must be a list of texts.")
            return {"vectors": self._save("vectors", self._text().encode(texts)), "hash": self._text().hash}
        from ..inference.embedding import embed_pool

        count = embed_pool(self._model(), self._pool(), self._text(), job.progress, job.cancelled.is_set)
        return {"embedded": count}

    def _alike(self, job: Job, given: dict, text: str | None, k: int):
        """(id, similarity) of the k cases closest to a text, else to the picture that the request names."""
        from ..inference.search import search_image, search_text

        pool, watch = self._pool(), (job.progress, job.cancelled.is_set)
        if text is not None:
            return search_text(pool, self._text(), text, k, *watch)
        image = self._load(given["image"], "image")
        return search_image(pool, self._model(), self._text(), image, _spacing(given.get("spacing")), given.get("modality"), k, *watch)

    @params(text=str, image=str, spacing=list, modality=str, k=int)
    def search(self, job: Job, given: dict) -> dict:
        if (given.get("text") is None) == (given.get("image") is None):
            raise ProtocolError("'search' needs either 'text' or 'image'.")
        pool = self._pool()
        found = self._alike(job, given, given.get("text"), 10 if given.get("k") is None else given["k"])
        return {"cases": [{**pool.meta(i), "similarity": score} for i, score in found]}

    @params(id_=str)
    def case(self, job: Job, given: dict) -> dict:
        from ..inference.pictures import display
        from ..rationale import beside

        case = self._pool().get(given["id"])
        case.rationale = beside(case)
        name = "case-" + hashlib.sha256(case.id.encode()).hexdigest()[:24]
        picture = self._save(name, display(case.image, case.modality))
        return {**case.metadata(), "image": picture, "mask": self._save(name + "-mask", case.mask)}

    @params(path_=str, title=str, note=str)
    def export_report(self, job: Job, given: dict) -> dict:
        from ..inference.report import write_report

        if self.prediction is None:
            raise InputError("There is no result to report on. Segment a volume first.")
        words = {name: given.get(name) for name in ("title", "note")}
        written = write_report(given["path"], self.prediction, self.volume, self.pool, **words)
        return {"path": str(written.path), "warning": written.warning()}

    # what the methods share

    def _model(self):
        if self.model is None:
            raise ModelError("No model is loaded. Send load_model first.")
        return self.model

    def _pool(self):
        if self.pool is None:
            raise PoolError("No pool is open. Send open_pool first.")
        return self.pool

    def _text(self):
        """The text encoder that the model was trained with, else the default."""
        from ..rationale import TextEmbedder

        path = None if self.model is None else self.model.config.text_encoder
        if self._embedder is None or path != self._embedder_path:
            self._embedder, self._embedder_path = TextEmbedder(path), path
        return self._embedder

    def _segmenter(self, job: Job):
        if self.segmenter is None:
            from ..inference import Segmenter

            model = self._model()
            job.progress(0.0, "Preparing")
            self.segmenter = Segmenter(model, self.pool, text_embedder=self._text())
        return self.segmenter

    def _slice(self, given: dict, decoded: bool = True) -> tuple[Prediction, str, int]:
        if self.prediction is None:
            raise InputError("No volume is held. Segment one first.")
        plane, index = given["plane"], given["index"]
        if not 0 <= index < len(PlaneView(self.prediction.geometry, plane)):
            raise InputError(f"The volume has no {plane} slice {index}.")
        if decoded and not any((e.plane, e.index) == (plane, index) for e in self.prediction.evidence):
            raise InputError(f"The {plane} slice {index} was not decoded in the last run.")
        return self.prediction, plane, index

    def _load(self, path: str, what: str) -> np.ndarray:
        try:
            with open(path, "rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"The {what} file '{path}' could not be read as a .npy array.") from error

    def _save(self, name: str, array: np.ndarray) -> str:
        """Write an array for the client. A later array of the same name gets a new file; the last few stay readable."""
        self._count += 1
        path = self.folder / f"{name}-{self._count}.npy"
        try:
            np.save(path, array, allow_pickle=False)
        except OSError as error:
            raise InputError(f"The temporary folder '{self.folder}' cannot be written ({error.strerror}). Free some disk space.") from error
        files = self._written.setdefault(name, [])
        files.append(path)
        for old in files[:-_KEPT]:
            old.unlink(missing_ok=True)
        del files[:-_KEPT]
        return str(path)


def _matrix(rows: list) -> np.ndarray:
    try:
        matrix = np.array(rows, float)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise ProtocolError(f"'ijkToRAS' must be four rows of four numbers, not {json.dumps(rows)[:60]}.")
    return matrix


def label_names(given: dict) -> dict[int, str]:
    """Value -> name of a request's labels.

    Raises:
        ProtocolError: a value is no whole number from 1 to 255, or a name is no text or empty.
    """
    named = all(isinstance(name, str) and name.strip() for name in given.values())
    if not named or not all(value.isascii() and value.isdecimal() and 1 <= int(value[:9]) <= 255 for value in given):
        raise ProtocolError("'labels' must map whole numbers from 1 to 255, written as texts, to names.")
    return {int(value): name for value, name in given.items()}


def _spacing(values: list | None) -> tuple[float, float] | None:
    if values is None:
        return None
    if len(values) != 2 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values):
        raise ProtocolError("'spacing' must be two positive numbers: row and column size in mm.")
    return float(values[0]), float(values[1])
