"""Which cases of a pool may serve a query as references, and in plain words why the others may not.

Stages, in this order: exclusion (self, same patient, volume or group, near-duplicate, excluded by a reviewer), compatibility (modality,
body site), morphology (visual similarity), cot (consistency of the rationales), limit (enough others were closer).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from ..case import Coverage, Rationale, Reference, Rejection
from ..errors import InputError, PoolError
from .records import modality_code
from .store import Pool
from .thumbnail import HASH as THUMBNAIL

NO_CLOSE_CASE = "No close case in this pool."


@dataclass(frozen=True)
class SelectionConfig:
    """How references are chosen.

    Args:
        k_coarse: candidates that the visual stage hands on; k: references at most.
        visual_threshold: least cosine of image vectors; visual_high: the cosine at which the pool covers a query well.
        cot_threshold: least CoT consistency 0..1; contradiction_penalty: taken off it for each contradiction; a candidate with
            ``max_contradictions`` or more is refused. cot_weight: candidates are ranked by visual + cot_weight * cot.
        near_duplicate: correlation of thumbnails from which two pictures count as one.
        max_per_volume: references from one volume at most. other_plane: by how much more a case of another plane than the query's, where
            both are known, must look alike; same_plane: refuse it.
        max_rejected: rejections reported at most, but at least one for each stage that occurred.
    """

    k_coarse: int = 50
    k: int = 5
    visual_threshold: float = 0.55
    visual_high: float = 0.85
    cot_threshold: float = 0.5
    cot_weight: float = 0.5
    contradiction_penalty: float = 0.1
    max_contradictions: int = 2
    near_duplicate: float = 0.99
    max_per_volume: int = 3
    other_plane: float = 0.1
    same_plane: bool = False
    max_rejected: int = 12

    def __post_init__(self):
        if self.k < 1 or self.k_coarse < self.k or self.max_per_volume < 1 or self.max_rejected < 0 or self.max_contradictions < 1:
            raise InputError(
                "Selection needs 1 <= k <= k_coarse, max_per_volume and max_contradictions of 1 or more, and max_rejected of 0 or more."
            )
        if not -1 <= self.visual_threshold < self.visual_high <= 1:
            raise InputError("Selection needs -1 <= visual_threshold < visual_high <= 1.")

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass
class Query:
    """One slice that looks for references.

    Args:
        image_vector: (d,) of the model. thumbnail: (1024,) of ``cers.pool.thumbnail``, None to skip the near-duplicate check.
        rationale, rationale_vector: of the first mask; None where it is empty, and the CoT stage is then skipped.
        patient_id, volume_id, group: a case that shares any of them is never used.
        content_hash: of the slice (``cers.pool.image_hash``) or of a pool case.
    """

    image_vector: np.ndarray
    thumbnail: np.ndarray | None = None
    rationale: Rationale | None = None
    rationale_vector: np.ndarray | None = None
    modality: str | None = None
    body_site: str | None = None
    plane: str | None = None
    patient_id: str | None = None
    volume_id: str | None = None
    group: str | None = None
    content_hash: str | None = None


@dataclass
class Selection:
    """References by rank, the most similar of the rejected, and how well the pool covers the query."""

    selected: list[Reference]
    rejected: list[Rejection]
    coverage: Coverage

    @property
    def ids(self) -> list[str]:
        return [r.id for r in self.selected]


@dataclass
class _Candidate:
    row: int
    visual: float
    cot: float | None = None
    pinned: bool = False
    turned: float = 0.0  # taken off its visual similarity where it is of another plane
    close: bool = True  # by its own scores; a pinned one may be far
    score: float = field(default=0.0)


def select(
    pool: Pool,
    query: Query,
    model_hash: str,
    text_hash: str | None,
    config: SelectionConfig | None = None,
    pinned: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> Selection:
    """One selection; for many queries keep a ``Selector``."""
    return Selector(pool, model_hash, text_hash).select(query, config, pinned, dropped)


class Selector:
    """Chooses references from a pool for one image model and one text model; notices by itself when anyone changes the pool.

    Args:
        text_hash: None where there is no text model; rationales are then compared by their descriptors only.
    """

    def __init__(self, pool: Pool, model_hash: str, text_hash: str | None):
        self.pool, self.model_hash, self.text_hash = pool, model_hash, text_hash
        self._lock = threading.RLock()
        self._state = None

    def _refresh(self) -> None:
        state = self.pool.state
        if state == self._state:
            return
        index = self.pool.index("image", self.model_hash)
        facts = {f[0]: f[1:] for f in self.pool.facets()}
        rows = [facts.get(case_id) for case_id in index.ids]
        self._present = np.array([r is not None for r in rows], bool)  # a case may be deleted between the two reads
        patient, volume, group, modality, site, plane, review = list(zip(*[r or (None,) * 7 for r in rows])) or [()] * 7
        self._patient, self._volume, self._group = _Facet(patient), _Facet(volume), _Facet(group)
        self._modality, self._site, self._plane = _Facet(modality, modality_code), _Facet(site, _word), _Facet(plane, _word)
        self._excluded = np.array([r == "excluded" for r in review], bool)
        self._index = index
        self._thumbnails = _Rows(self.pool, "thumbnail", THUMBNAIL, index.ids)
        self._texts = _Rows(self.pool, "rationale", self.text_hash, index.ids)
        self._rationales: dict[int, Rationale | None] = {}
        self._state = state

    def select(
        self, query: Query, config: SelectionConfig | None = None, pinned: Sequence[str] = (), dropped: Sequence[str] = ()
    ) -> Selection:
        """References for one query.

        Args:
            pinned: ids that are used in any case. dropped: ids that are not used.

        Raises:
            PoolError: a pinned case cannot be used (not in the pool, no vector, or it is the query's own patient, volume or picture).
            InputError: the query's vector does not fit the model's, or a case is both pinned and dropped.
        """
        with self._lock:
            self._refresh()
            return self._select(query, config or SelectionConfig(), list(dict.fromkeys(pinned)), set(dropped))

    def _select(self, query: Query, config: SelectionConfig, pinned: list[str], dropped: set[str]) -> Selection:
        index, n = self._index, len(self._index)
        if both := dropped & set(pinned):
            raise InputError(f"Case {min(both)} is both pinned and dropped. Choose one.")
        if missing := [p for p in pinned if p not in index.row or not self._present[index.row[p]]]:
            raise PoolError(
                f"The pinned case {missing[0]} is not in this pool, or has no vector of this model yet. Unpin it and try again."
            )
        if n == 0:
            what = "it is empty" if not len(self.pool) else "its cases have no vectors of this model yet"
            return Selection([], [], Coverage(0.0, False, f"{NO_CLOSE_CASE[:-1]}: {what}."))
        vector = _unit(query.image_vector, index.dimension)
        rejected: dict[int, Rejection] = {}

        excluded = self._exclusions(query)
        incompatible = self._incompatibilities(query, config)
        closed = np.zeros(n, bool)
        for mask, _ in excluded + incompatible:
            closed |= mask
        told = np.zeros(n, bool)
        for stage, group in (("exclusion", excluded), ("compatibility", incompatible)):
            told = self._name_closed(rejected, stage, group, told, vector, config)
        drop_rows = np.array([index.row[d] for d in dropped if d in index.row], np.int64)
        for row, visual in zip(drop_rows.tolist(), index.cosines(vector, drop_rows).tolist()):
            rejected[row] = Rejection(index.ids[row], "dropped", "Not used: you dropped it.", visual)

        admissible = self._present & ~closed
        admissible[drop_rows] = False
        candidates, nearest = self._morphology(query, vector, admissible, config, rejected, {index.row[p] for p in pinned})
        pins = self._pins(query, vector, pinned, excluded, closed, rejected, config)
        candidates = self._cot(query, pins + [c for c in candidates if c.row not in {p.row for p in pins}], config, rejected)
        chosen = self._limit(candidates, config, rejected)
        references = [
            Reference(index.ids[c.row], rank, round(c.visual, 6), None if c.cot is None else round(c.cot, 6), pinned=c.pinned)
            for rank, c in enumerate(chosen, 1)
        ]
        return Selection(references, _report(rejected, config.max_rejected), _coverage(chosen, nearest, config))

    # ---- stages

    def _exclusions(self, query: Query) -> list[tuple[np.ndarray, str]]:
        """(rows, reason) of what must never be evidence for this query."""
        own = np.zeros(len(self._index), bool)
        if query.content_hash is not None:
            own[[self._index.row[i] for i in self.pool.find(query.content_hash) if i in self._index.row]] = True
        return [
            (own, "Not used: it is the very picture being segmented."),
            (self._volume.equal(query.volume_id), "Not used: same volume as the image being segmented."),
            (self._patient.equal(query.patient_id), "Not used: same patient as the image being segmented."),
            (self._group.equal(query.group), "Not used: same group of related images as the image being segmented."),
            (self._excluded, "Not used: a reviewer excluded it from use as evidence."),
        ]

    def _incompatibilities(self, query: Query, config: SelectionConfig) -> list[tuple[np.ndarray, str]]:
        """(rows, reason) of known conflicts; what is not known on either side is admitted."""
        out = []
        checks = [
            ("Different modality", self._modality, modality_code(query.modality)),
            ("Different body site", self._site, _word(query.body_site)),
        ]
        if config.same_plane:
            checks.append(("Different plane", self._plane, _word(query.plane)))
        for what, facet, own in checks:
            if own is not None:
                out += [(facet.equal(value), f"{what} ({value}; the query is {own}).") for value in facet.values if value != own]
        return out

    def _name_closed(
        self,
        rejected: dict[int, Rejection],
        stage: str,
        groups: list[tuple[np.ndarray, str]],
        told: np.ndarray,
        vector: np.ndarray,
        config: SelectionConfig,
    ) -> np.ndarray:
        """The most similar of the closed rows; of several reasons the first is told. Returns ``told`` with these rows."""
        union = np.zeros(len(self._index), bool)
        for mask, _ in groups:
            union |= mask
        open_rows = union & self._present & ~told
        count = int(np.count_nonzero(open_rows))
        if not count:
            return told | union
        if count <= 200:
            rows = np.flatnonzero(open_rows)
            visual = self._index.cosines(vector, rows)
        else:
            rows, visual = self._index.search(vector, max(1, config.max_rejected), open_rows)
        for row, similarity in zip(rows.tolist(), visual.tolist()):
            rejected[row] = Rejection(self._index.ids[row], stage, next(r for mask, r in groups if mask[row]), similarity)
        return told | union

    def _morphology(
        self,
        query: Query,
        vector: np.ndarray,
        admissible: np.ndarray,
        config: SelectionConfig,
        rejected: dict[int, Rejection],
        pins: set[int],
    ) -> tuple[list[_Candidate], _Candidate | None]:
        """Up to k_coarse candidates above the visual threshold, and the nearest case that is no near-duplicate."""
        total, want = int(np.count_nonzero(admissible)), config.k_coarse + 8
        while True:
            rows, visual = self._index.search(vector, want, admissible)
            twin = self._near_duplicates(query, rows, config)
            if np.count_nonzero(~twin) >= config.k_coarse or want >= total:
                break
            want *= 4  # a pool full of the query's near-duplicates
        candidates, nearest = [], None
        for row, similarity, same, turned in zip(rows.tolist(), visual.tolist(), twin, self._turned(query, rows, config)):
            if same:
                if row not in pins:
                    rejected[row] = Rejection(
                        self._index.ids[row],
                        "exclusion",
                        "Not used: a near-duplicate of the image being segmented (the same picture, or a neighbouring slice).",
                        similarity,
                    )
                continue
            case = _Candidate(row, similarity, turned=turned)
            if nearest is None or similarity - turned > nearest.visual - nearest.turned:
                nearest = case
            if len(candidates) == config.k_coarse:
                break
            least = config.visual_threshold + turned
            if similarity >= least or row in pins:
                candidates.append(case)
            else:
                where = f" in another plane, here {self._plane.name(row)}" if turned else ""
                rejected[row] = Rejection(
                    self._index.ids[row],
                    "morphology",
                    f"Looks too different (visual similarity {similarity:.2f}; at least {least:.2f} is needed{where}).",
                    similarity,
                )
        return candidates, nearest

    def _turned(self, query: Query, rows: np.ndarray, config: SelectionConfig) -> list[float]:
        """What is taken off the visual similarity of each row: ``other_plane`` where its plane and the query's are known and differ."""
        own, codes = _word(query.plane), self._plane.codes[rows]
        if own is None:
            return [0.0] * len(rows)
        return (config.other_plane * ((codes >= 0) & (codes != self._plane.values.get(own, -2)))).tolist()

    def _near_duplicates(self, query: Query, rows: np.ndarray, config: SelectionConfig) -> np.ndarray:
        if query.thumbnail is None or not len(rows):
            return np.zeros(len(rows), bool)
        small, known = self._thumbnails.get(rows)
        return known & (small @ np.asarray(query.thumbnail, np.float32) >= config.near_duplicate)

    def _pins(
        self,
        query: Query,
        vector: np.ndarray,
        pinned: list[str],
        excluded: list[tuple[np.ndarray, str]],
        closed: np.ndarray,
        rejected: dict[int, Rejection],
        config: SelectionConfig,
    ) -> list[_Candidate]:
        rows = np.array([self._index.row[p] for p in pinned], np.int64)
        for row, twin in zip(rows, self._near_duplicates(query, rows, config)):
            other = "Not used: a near-duplicate of the image being segmented." if twin else None
            reason = next((r for mask, r in excluded if mask[row]), other)
            if reason is not None:
                raise PoolError(f"The pinned case {self._index.ids[row]} cannot be used. {reason}")
            rejected.pop(row, None)
        turned, least = self._turned(query, rows, config), config.visual_threshold
        return [
            _Candidate(int(row), float(v), None, True, t, bool(not closed[row] and v - t >= least))
            for row, v, t in zip(rows, self._index.cosines(vector, rows), turned)
        ]

    def _cot(self, query: Query, candidates: list[_Candidate], config: SelectionConfig, rejected: dict[int, Rejection]) -> list[_Candidate]:
        """Those whose rationale agrees with the query's. A case without one passes with cot None, that is, with no credit for it."""
        if query.rationale is None and query.rationale_vector is None or not candidates:
            for c in candidates:
                c.score = c.visual - c.turned
            return candidates
        from ..rationale import contradictions

        rows = np.array([c.row for c in candidates], np.int64)
        cosines, known = np.zeros(len(rows)), np.zeros(len(rows), bool)
        if query.rationale_vector is not None:
            vectors, known = self._texts.get(rows)
            if known.any():
                cosines[known] = vectors[known] @ _unit(query.rationale_vector, vectors.shape[1], "rationale vector")
        rationales = self._rationales_of(rows) if query.rationale is not None else {}
        kept = []
        for c, cosine, has_vector in zip(candidates, np.clip(cosines, 0, 1).tolist(), known.tolist()):
            other = rationales.get(c.row)
            against = contradictions(query.rationale, other) if other is not None else []
            c.cot = max(0.0, cosine - config.contradiction_penalty * len(against)) if has_vector else None
            c.score = c.visual - c.turned + config.cot_weight * (c.cot or 0.0)
            reason = None
            if len(against) >= config.max_contradictions:
                reason = f"Its rationale contradicts (this lesion against the reference): {'; '.join(against)}."
            elif c.cot is not None and c.cot < config.cot_threshold:
                reason = (
                    f"Its rationale agrees too little (consistency {c.cot:.2f}; at least {config.cot_threshold:.2f} is needed"
                    + (f"; contradiction: {against[0]}" if against else "")
                    + ")."
                )
            c.close = c.close and reason is None
            if c.close or c.pinned:
                kept.append(c)
            else:
                rejected[c.row] = Rejection(self._index.ids[c.row], "cot", reason, c.visual, c.cot)
        return kept

    def _rationales_of(self, rows: np.ndarray) -> dict[int, Rationale | None]:
        if missing := [int(r) for r in rows if int(r) not in self._rationales]:
            found = self.pool.rationales(self._index.ids[r] for r in missing)
            self._rationales.update((r, found.get(self._index.ids[r], (0, None))[1]) for r in missing)
        return self._rationales

    def _limit(self, candidates: list[_Candidate], config: SelectionConfig, rejected: dict[int, Rejection]) -> list[_Candidate]:
        """The best k, pinned ones first to be sure of their place, at most so many from one volume; in the order of their scores."""
        by_score = sorted(candidates, key=lambda c: (-round(c.score, 6), self._index.ids[c.row]))
        chosen, per_volume = [], Counter()
        for c in sorted(by_score, key=lambda c: not c.pinned):
            volume = self._volume.codes[c.row]
            if not c.pinned and len(chosen) >= config.k:
                which = "closer or pinned" if any(p.pinned for p in chosen) else "closer"
                reason = f"Not needed: {len(chosen)} {which} references are already used."
            elif not c.pinned and volume >= 0 and per_volume[volume] >= config.max_per_volume:
                reason = f"Not needed: {config.max_per_volume} references from its volume are already used."
            else:
                chosen.append(c)
                per_volume[volume] += 1
                continue
            rejected[c.row] = Rejection(self._index.ids[c.row], "limit", reason, c.visual, c.cot)
        keep = {c.row for c in chosen}
        return [c for c in by_score if c.row in keep]


class _Facet:
    """One metadata column as numbers; -1 where not known."""

    def __init__(self, column: Sequence[str | None], norm=lambda value: value or None):
        values = [norm(v) for v in column]
        self.norm, self.values = norm, {v: n for n, v in enumerate(sorted({v for v in values if v is not None}))}
        self.codes = np.array([-1 if v is None else self.values[v] for v in values], np.int32)

    def equal(self, value: str | None) -> np.ndarray:
        return self.codes == self.values.get(self.norm(value), -2)

    def name(self, row: int) -> str:
        return next(value for value, code in self.values.items() if code == self.codes[row])


class _Rows:
    """Vectors of another kind by the index's rows, read from the pool when first asked for."""

    def __init__(self, pool: Pool, kind: str, model_hash: str | None, ids: list[str]):
        self._pool, self._kind, self._hash, self._ids = pool, kind, model_hash, ids
        self._asked, self._known = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        self._data: np.ndarray | None = None

    def get(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m, d) float32 and (m,) bool: whether there is one."""
        missing = rows[~self._asked[rows]]
        if self._hash is not None and len(missing):
            by_id = {self._ids[r]: r for r in missing}
            found, vectors = self._pool.vectors(self._kind, self._hash, by_id)
            if self._data is None and len(found):
                self._data = np.zeros((len(self._ids), vectors.shape[1]), np.float32)  # memory is taken only as rows are filled
            for case_id, vector in zip(found, vectors):
                self._data[by_id[case_id]] = vector
                self._known[by_id[case_id]] = True
            self._asked[missing] = True
        if self._data is None:
            return np.zeros((len(rows), 0), np.float32), np.zeros(len(rows), bool)
        return self._data[rows], self._known[rows]


def _word(value: str | None) -> str | None:
    return value.strip().lower() or None if value else None


def _unit(vector: np.ndarray, dimension: int, what: str = "image vector") -> np.ndarray:
    vector = np.asarray(vector, np.float32).ravel()
    norm = np.linalg.norm(vector)
    if vector.shape != (dimension,) or not np.isfinite(norm) or norm == 0:
        raise InputError(
            f"The query's {what} has {vector.size} numbers or is not finite; this pool's have {dimension}. Embed both with one model."
        )
    return vector / norm


def _coverage(chosen: list[_Candidate], near: _Candidate | None, config: SelectionConfig) -> Coverage:
    """0.1 at visual_threshold, 0.9 at visual_high, logistic in between and beyond."""
    if near is None:
        return Coverage(0.0, False, f"{NO_CLOSE_CASE} Only the pinned references are used." if chosen else NO_CLOSE_CASE)
    middle = (config.visual_threshold + config.visual_high) / 2
    slope = 2 * np.log(9) / (config.visual_high - config.visual_threshold)
    nearest = near.visual - near.turned
    value = round(float((1 + np.tanh(slope * (nearest - middle) / 2)) / 2), 4)  # the logistic; exp would overflow far off
    if not chosen:
        return Coverage(value, False, f"{NO_CLOSE_CASE} The nearest admissible one has a visual similarity of {near.visual:.2f}.")
    own = [c for c in chosen if c.close]  # pinned or not
    if not own:
        return Coverage(value, False, f"{NO_CLOSE_CASE} Only the pinned references are used.")
    words = "well" if nearest >= config.visual_high else "in part"
    close = "1 close case" if len(own) == 1 else f"{len(own)} close cases, the nearest of them"
    return Coverage(
        value, True, f"The pool covers this slice {words}: {close} with a visual similarity of {max(c.visual for c in own):.2f}."
    )


def _report(rejected: dict[int, Rejection], most: int) -> list[Rejection]:
    """The most similar, but at least one of each stage."""
    ranked = sorted(rejected.values(), key=lambda r: (-(r.visual if r.visual is not None else -2.0), r.id))
    first = {r.stage: r for r in reversed(ranked)}.values()
    keep = list(first) + [r for r in ranked if not any(r is f for f in first)]
    keep = keep[: max(most, len(first))]
    return [r for r in ranked if any(r is k for k in keep)]
