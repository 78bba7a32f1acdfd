"""Segment a volume with evidence: the whole method in one class.

1 encode each slice; 2 plain decoder D_S; 3 measured rationale of its mask, embedded; 4 selection of references from the pool;
5 evidence decoder D_R with them and without, slice by slice, mixed by how far they are to count; influence of each; 6 calibrated
probabilities back in the volume's own grid.

Across the plane that the scanner took, slices are first decoded some millimetres apart, then all of those that show a finding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ..case import Coverage, Evidence, Prediction, Reference, Volume, acquisition_plane
from ..case.geometry import PLANES
from ..case.runs import to_runs
from ..errors import InputError, ModelError
from ..network.evidence import References
from ..network.model import Encoded
from ..pool import Pool, Query, Selection, Selector, image_hash, thumbnail
from ..pool.records import modality_code
from ..rationale import TextEmbedder, describe
from .device import numpy_on_one_thread
from .embedding import ReferenceStore, embed_pool
from .model import Model
from .planes import Plane, prepare
from .session import UNCONFIRMED, Clock, Session, Slice, SliceResult, batches, join, provenance
from .shown import crossed, told
from .volume import (
    drop_small_parts,
    fuse_planes,
    fuse_slice,
    left_out,
    soft_difference,
    strongest,
    to_labelmap,
    votes,
)

CHOICES = ("auto", "acquisition", "three")  # of planes
LEAST_PIXELS = 4  # a pass-1 mask below this many frame pixels is too small to describe


class Segmenter:
    """Segments volumes with one model and, if there is one, a knowledge pool.

    Args:
        model: from ``load_model``. pool: None decodes with the null reference only.
        text_embedder: None makes the one the model was trained with.
    """

    def __init__(self, model: Model, pool: Pool | None = None, *, text_embedder: TextEmbedder | None = None):
        self.model, self.pool = model, pool
        self.embedder = text_embedder or TextEmbedder(model.config.text_encoder)
        if self.embedder.dimension != model.net.config.rationale:
            raise ModelError(
                f"The text encoder gives {self.embedder.dimension} numbers, the model expects {model.net.config.rationale}. "
                "Use the text encoder named in the model's configuration."
            )
        self.store = ReferenceStore(model, pool, self.embedder) if pool is not None else None
        self.selector = Selector(pool, model.hash, self.embedder.hash) if pool is not None else None
        self.session: Session | None = None

    @torch.inference_mode()
    @numpy_on_one_thread()
    def segment(
        self,
        volume: Volume,
        planes: str = "auto",
        text: str | None = None,
        progress: Callable[[float, str], None] | None = None,
        cancel: Callable[[], bool] | None = None,
        influence: bool = True,
    ) -> Prediction:
        """Segment a volume.

        Args:
            planes: "acquisition" decodes along the plane the scanner took, "three" along all three and fuses the probabilities; "auto"
                takes all three where the volume reaches far enough in every direction (``Volume.worth_crossing``), unless the finding is
                owed to references of what the model was not trained for, and the pool has them from one side only.
            text: a short clinical text; optional. progress: called with (fraction, message). cancel: asked often; True stops.
            influence: measure how much each reference changes each mask (one more pass of D_R per reference).

        Raises:
            InputError: unknown ``planes``, or a modality the model was not made for. Cancelled: nothing is kept.
            PoolError: see ``embed_pool``.
        """
        if planes not in CHOICES:
            raise InputError(f"Planes '{planes}' is not known. Use auto, acquisition or three.")
        config = self.model.config
        modality, site = modality_code(volume.modality or config.modality), volume.body_site or config.body_site
        if volume.modality and config.modality and modality != modality_code(config.modality):
            raise InputError(
                f"This model segments {config.modality} images, but the image is {volume.modality}. "
                f"Choose a model made for {volume.modality}."
            )
        clock = Clock(progress, cancel)
        started = time.perf_counter()
        with clock.step("pool", "Bringing the pool up to date", 0.0):
            if self.pool is not None:
                embed_pool(self.model, self.pool, self.embedder, lambda f, m: clock.say(0.2 * f, m), cancel)
        first = acquisition_plane(volume.geometry)
        # across a single slice there is nothing to see
        crossing = planes == "three" and min(volume.geometry.shape) > 1 or planes == "auto" and volume.worth_crossing
        with clock.step("prepare", "Preparing slices", 0.2):
            tokens = torch.from_numpy(self.embedder.encode_tokens(text.strip())).to(self.model.device) if text and text.strip() else None
            session = Session(volume, {}, {}, modality, site, tokens, volume.content_hash)
            session.planes[first] = prepare(volume, first, config.size, len(self.model.labels), modality)
        self._pass(session, [(first, i) for i in session.planes[first].bodies()], influence, clock, 0.25, 0.5 if crossing else 0.95)
        if crossing and not (planes == "auto" and self._borrowed(session)):
            with clock.step("prepare", "Preparing slices of the other planes", 0.5):
                for name in (n for n in PLANES if n != first):
                    clock.check()
                    session.planes[name] = prepare(volume, name, config.size, len(self.model.labels), modality)
            coarse = [(n, i) for n, plane in session.planes.items() if n != first for i in plane.bodies(plane.stride)]
            self._pass(session, coarse, influence, clock, 0.5, 0.8)
        start = 0.8 if len(session.planes) > 1 else 0.95
        while todo := self._near(session):  # by what each plane shows by itself, which is cheaper to ask
            self._pass(session, todo, influence, clock, start, start + 0.5 * (0.95 - start))
            start += 0.5 * (0.95 - start)
        with clock.step("finish", "Putting the mask together", start):
            maps, total, labelmap = self._fuse(session, {}, clock)
        while todo := self._near(session, labelmap):
            self._pass(session, todo, influence, clock, start, start + 0.5 * (0.95 - start))
            start += 0.5 * (0.95 - start)
            with clock.step("finish"):
                changed = {name for name, _ in todo}
                maps, total, labelmap = self._fuse(session, {n: m for n, m in maps.items() if n not in changed}, clock)
        with clock.step("finish", "Collecting the evidence", 0.96):
            prediction = self._finish(session, maps, total, labelmap, planes, text, influence)
        prediction.seconds.update({k: round(v, 4) for k, v in clock.seconds.items()})
        prediction.seconds["total"] = round(time.perf_counter() - started, 4)
        session.prediction, session.labelmap = prediction, labelmap.copy() if len(maps) > 1 else None
        clock.say(1.0, "Done")  # may still be cancelled; what was kept before must then stay
        self.session = session
        return prediction

    @torch.inference_mode()
    @numpy_on_one_thread()
    def resegment(self, index: int, plane: str, pinned=(), dropped=()) -> SliceResult:
        """Decode one slice of the last volume again, with references pinned or dropped; steps 4 to 6 only. The volume's mask stays.

        What the other planes said of the slice stays as it was.

        Raises:
            InputError: nothing segmented yet, or no such slice. PoolError: a pinned case cannot be used.
        """
        session = self.session
        if session is None:
            raise InputError("No volume has been segmented yet. Segment one first.")
        if plane not in session.planes or not 0 <= index < len(session.planes[plane].view):
            raise InputError(
                f"Slice {index} of the {plane} plane was not decoded. Decoded: "
                + ", ".join(f"{n} 0 to {len(p.view) - 1}" for n, p in session.planes.items())
                + "."
            )
        key, view = (plane, index), session.planes[plane]
        before = session.slices.get(key)
        if before is None:
            raise InputError(
                f"Slice {index} of the {plane} plane shows no part of the body, or nothing was found near it: it was not decoded."
            )
        self._embed(session, [key], all_of_them=bool(pinned))
        now = Slice(before.rationale, before.vector, self._select(session, key, tuple(pinned), tuple(dropped)))
        changed = replace(session, slices={key: now})
        fused, first = view.fused[index].clone(), view.shown(index)
        try:
            self._decode(changed, [key], self._references(changed, [key]), True, Clock())
            alone = view.shown(index)
            if len(session.planes) > 1:
                return self._fused_again(changed, key, first, alone)
            mask = to_labelmap(alone[:, None], self.model.labels, self.model.config.threshold)[0]
            return SliceResult(mask, alone, self._evidence(changed, key, mask, alone))
        finally:
            view.fused[index] = fused

    @numpy_on_one_thread()
    def crossed(self, prediction: Prediction, plane: str, index: int, changed: np.ndarray) -> list[Evidence]:
        """The evidence of slices of other planes, anew, after pixels (rows, columns) of a slice of the prediction were changed."""
        return crossed(prediction, self.session.planes, (plane, index), changed, self.session.modality)

    def _fused_again(self, session: Session, key, first: np.ndarray, alone: np.ndarray) -> SliceResult:
        """A slice whose probabilities in its own plane were ``first`` and are ``alone`` now, fused with what the other planes showed."""
        plane, index, threshold = session.planes[key[0]], key[1], self.model.config.threshold
        change, shown = alone - first, alone.max(0) >= threshold
        mean, weighted = (
            np.stack([plane.view.slices(channel)[index] for channel in stack]).astype(np.float32)
            for stack in (session.prediction.probabilities, session.weighted)
        )
        mean = mean + change / len(session.planes)
        weighted = weighted + change * plane.sharpness / sum(p.sharpness for p in session.planes.values())
        masks = plane.view.slices(session.labelmap)
        beside = (masks[[i for i in (index - 1, index + 1) if 0 <= i < len(masks)]] > 0).any(0)
        others = plane.view.slices(session.votes)[index].astype(int) - (first.max(0) >= threshold)
        every = others + shown == len(session.planes)
        mask = fuse_slice(mean, weighted, every, beside, self.model.labels, threshold)
        left = left_out(shown[None], mask[None] > 0, plane.spacing)[0]
        return SliceResult(mask, mean, self._evidence(session, key, mask, mean, left))

    # ---- steps

    def _pass(self, session: Session, todo, influence: bool, clock: Clock, start: float, end: float) -> None:
        """Steps 1 to 5 for (plane, index) of ``todo``; they are what lies between ``start`` and ``end`` of the progress."""

        def at(share: float) -> float:
            return start + share * (end - start)

        for done, batch in batches(todo):
            clock.say(at(0.4 * done), "Encoding slices")
            self._encode(session, batch, clock)
        with clock.step("rationale", "Measuring findings", at(0.4)):
            for key in todo:
                session.slices[key] = self._describe(session, key)
                clock.check()
        with clock.step("select", "Choosing reference cases", at(0.45)):
            for key in todo:
                session.slices[key].selection = self._select(session, key)
                clock.check()
        with clock.step("text", "Embedding rationales", at(0.5)):
            close = self._embed(session, todo)
        with clock.step("select"):
            for key in close:
                session.slices[key].selection = self._select(session, key)
                clock.check()
        with clock.step("references", "Encoding reference cases", at(0.55)):
            references = self._references(session, todo, clock.check)
            clock.check()
        for done, batch in batches(todo):
            clock.say(at(0.6 + 0.4 * done), "Decoding with evidence")
            self._decode(session, batch, references, influence, clock)

    def _near(self, session: Session, labelmap: np.ndarray | None = None) -> list[tuple[str, int]]:
        """Slices not decoded yet that lie close to one that shows a finding: of its own, or of all planes, where that is known."""
        threshold = self.model.config.threshold
        return [(name, i) for name, plane in session.planes.items() for i in plane.near(labelmap, threshold, LEAST_PIXELS)]

    def _encode(self, session: Session, keys, clock) -> None:
        plane = session.planes[keys[0][0]]
        index = [i for _, i in keys]
        with clock.step("encode"):
            encoded = self._encoded(session, plane, index)
        with clock.step("plain"):
            # not calibrated: D_R was trained with the plain probabilities as they are
            plane.plain[index] = self.model.net.decode_plain(encoded).float().sigmoid().cpu()
        for row, i in enumerate(index):
            plane.keep(i, encoded.rows(slice(row, row + 1)))

    def _encoded(self, session: Session, plane: Plane, index: list[int]):
        x = plane.frames[index].to(self.model.device, memory_format=torch.channels_last)
        if session.tokens is None:
            return self.model.net.encode(x)
        present = torch.ones(len(x), len(session.tokens), dtype=torch.bool, device=self.model.device)
        return self.model.net.encode(x, session.tokens.expand(len(x), -1, -1), present)

    def _describe(self, session: Session, key) -> Slice:
        """Step 3: the measured rationale of D_S's mask, as pool cases are described."""
        plane, index = session.planes[key[0]], key[1]
        if int((plane.plain[index] > 0.5).any(0).sum()) < LEAST_PIXELS:
            return Slice()
        mask = (plane.frame.paste(plane.plain[index : index + 1])[0] > 0.5).any(0)
        if not mask.any():
            return Slice()
        return Slice(describe(plane.raw[index], mask, plane.spacing, modality=session.modality, plane=plane.name))

    def _embed(self, session: Session, keys, *, all_of_them: bool = False) -> list:
        """Vectors of the rationales of the slices that look like any case at all; words alone choose nothing. Returns their keys."""
        close = []
        for key in keys:
            found = session.slices[key]
            near = all_of_them or found.selection.selected or any(r.stage == "cot" for r in found.selection.rejected)
            if near and found.rationale is not None and found.vector is None:
                close.append(key)
        for key, vector in zip(close, self.embedder.encode([session.slices[k].rationale.compact for k in close]) if close else ()):
            session.slices[key].vector = vector
        return close

    def _select(self, session: Session, key, pinned=(), dropped=()) -> Selection:
        """Step 4."""
        if self.selector is None:
            return Selection([], [], Coverage(0.0, False, "No pool: segmented without evidence."))
        plane, volume, found = session.planes[key[0]], session.volume, session.slices[key]
        picture = plane.raw[key[1]]
        query = Query(
            image_vector=plane.pooled[key[1]],
            thumbnail=thumbnail(picture),
            rationale=found.rationale,
            rationale_vector=found.vector,
            modality=session.modality,
            body_site=session.body_site,
            plane=None if volume.is_picture else plane.name,
            patient_id=volume.patient_id,
            # the importer names a volume without a name of its own in the same way
            volume_id=volume.volume_id or session.image_hash[:16],
            content_hash=image_hash(picture),
        )
        return self.selector.select(query, self.model.selection, pinned, dropped)

    def _rows(self, session: Session, keys) -> list[Encoded]:
        """Encoded slices of one plane; those no longer kept are encoded again, in one batch."""
        plane = session.planes[keys[0][0]]
        rows = {i: plane.encoded.get(i) for _, i in keys}
        if missing := [i for i, row in rows.items() if row is None]:
            encoded = self._encoded(session, plane, missing)
            for n, i in enumerate(missing):
                rows[i] = encoded.rows(slice(n, n + 1))
                plane.keep(i, rows[i])
        return [rows[i] for _, i in keys]

    def _references(self, session: Session, keys, check=None) -> dict[str, References]:
        if self.store is None:
            return {}
        return self.store.rows([r.id for key in keys for r in session.slices[key].selection.selected], check)

    def _decode(self, session: Session, keys, references, influence: bool, clock) -> None:
        """Step 5: D_R for a batch of slices of one plane, and again without each reference where there is a mask."""
        plane = session.planes[keys[0][0]]
        with clock.step("evidence"):
            alone = self._alone(session, [key for key in keys if session.slices[key].selection.ids])
            wanted = [(key, session.slices[key].selection.ids) for key in keys]
            probabilities, weights, agreement = self._fused(session, wanted, references, alone)
            for n, key in enumerate(keys):
                plane.fused[key[1]] = probabilities[n]
                plane.known[key[1]] = True
                k = len(session.slices[key].selection.ids)
                session.slices[key].weights = weights[n, :k].tolist()
                session.slices[key].agreement = [None if math.isnan(a) else a for a in agreement[n, :k].tolist()]
        if not influence:
            return
        with clock.step("influence"):
            for key, agreed in zip(keys, agreement.tolist()):
                clock.check()
                ids = session.slices[key].selection.ids
                full = plane.fused[key[1]]
                if not ids or not (full > self.model.config.threshold).any():
                    continue
                without = [(key, ids[:n] + ids[n + 1 :]) for n in range(len(ids))]
                probabilities, *_ = self._fused(session, without, references, alone, dict(zip(ids, agreed)))
                session.slices[key].influence = soft_difference(probabilities, full).tolist()

    def _alone(self, session: Session, keys) -> dict:
        """D_R's probabilities (labels, size, size) of slices without any reference, and how far references are to count there, by key."""
        if not keys:
            return {}
        encoded = join(self._rows(session, keys))
        plain = torch.stack([session.planes[p].plain[i] for p, i in keys]).to(self.model.device)
        logits, _ = self.model.net.decode_evidence(encoded, plain, plain.new_zeros(len(keys), self.model.net.config.rationale))
        return {
            key: (p, self._share(session.slices[key].selection, bool((p > self.model.config.threshold).any())))
            for key, p in zip(keys, self._calibrated(logits))
        }

    def _calibrated(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.float() / self.model.config.temperature).sigmoid().cpu()

    def _share(self, selection: Selection, found: bool) -> float:
        """How much the references of a slice count against decoding without any: as far as the pool covers the slice.

        Where decoding without any found nothing, half as much, so that references, which all show a lesion, cannot make one by themselves;
        but of what the model was not trained for they decide, for nothing else can. Where a person pinned one, they count whole.
        """
        if any(r.pinned for r in selection.selected):
            return 1.0
        return selection.coverage.value * (1.0 if found or self.store.foreign(selection.ids) else UNCONFIRMED)

    def _fused(self, session: Session, wanted, references, alone, agreed=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """D_R for (slice, reference ids) pairs: probabilities (n, labels, size, size), weights and agreement (n, k), on the CPU.

        agreed: agreement by id as it was with a reference that is left out now, so that its influence is not what it says of others.
        Probabilities are a mean of those with the references and those without (``alone``); see ``_share``.
        """
        net, device = self.model.net, self.model.device
        encoded = join(self._rows(session, [key for key, _ in wanted]))
        plain = torch.stack([session.planes[p].plain[i] for (p, i), _ in wanted]).to(device)
        # words go with the references that they chose; without any, D_R was trained without words too
        told = [session.slices[key].vector if ids else None for key, ids in wanted]
        vectors = np.stack([np.zeros(net.config.rationale, np.float32) if vector is None else vector for vector in told])
        k = max(len(ids) for _, ids in wanted)
        stock = valid = counted = None
        agreement = torch.empty(len(wanted), 0)
        if k:
            filler = next(references[i] for _, ids in wanted for i in ids)
            stock = References.stack([References.stack([references[i] for i in ids] + [filler] * (k - len(ids))) for _, ids in wanted])
            valid = torch.tensor([[n < len(ids) for n in range(k)] for _, ids in wanted], device=device)
            pinned = [{r.id for r in session.slices[key].selection.selected if r.pinned} for key, _ in wanted]
            sure = torch.tensor([[i in p for i in ids] + [False] * (k - len(ids)) for (_, ids), p in zip(wanted, pinned)], device=device)
            known = agreed and [[agreed[i] for i in ids] + [math.nan] * (k - len(ids)) for _, ids in wanted]
            agreement = torch.tensor(known, device=device) if known else net.evidence.agreement(stock, valid)
            counted = net.evidence.counted(agreement, valid, sure)
        logits, weights = net.decode_evidence(encoded, plain, torch.from_numpy(vectors).to(device), stock, valid, counted)
        probabilities = self._calibrated(logits)
        for n, (key, _) in enumerate(wanted):
            if key in alone:
                probabilities[n] = torch.lerp(alone[key][0], probabilities[n], alone[key][1])
        return probabilities, weights.float().cpu(), agreement.cpu()

    # ---- results

    def _fuse(self, session: Session, maps: dict[str, np.ndarray], clock: Clock) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Step 6: back to the volume's grid: probabilities (labels, k, j, i) of each plane and of all, fused, and label map (k, j, i).

        Args:
            maps: those of planes that are as they were.
        """
        model, out = self.model, {}
        for name, plane in session.planes.items():
            clock.check()
            out[name] = maps[name] if name in maps else plane.probabilities()
        clock.check()
        total, weighted, labelmap = fuse_planes(
            list(out.values()), [plane.sharpness for plane in session.planes.values()], model.labels, model.config.threshold
        )
        clock.check()
        if len(out) > 1:
            session.weighted, session.votes = weighted.astype(np.float16), votes(list(out.values()), model.config.threshold)
        least = model.config.minimum_ml / session.volume.geometry.voxel_ml if session.volume.spacing_known else 0
        return out, total, drop_small_parts(labelmap, least)

    def _finish(self, session: Session, maps, total: np.ndarray, labelmap: np.ndarray, planes: str, text, influence: bool) -> Prediction:
        """The result, with the evidence of every slice that was decoded."""
        model, volume = self.model, session.volume
        evidence = []
        for name, plane in session.planes.items():
            view = plane.view
            masks = view.slices(labelmap)
            left = None
            if len(maps) > 1:
                left = left_out(view.slices(strongest(maps[name]) >= model.config.threshold), masks > 0, plane.spacing)
            probabilities = [view.slices(channel) for channel in total]
            for i in range(len(view)):
                if (name, i) in session.slices:
                    evidence.append(
                        self._evidence(
                            session, (name, i), masks[i], np.stack([p[i] for p in probabilities]), None if left is None else left[i]
                        )
                    )
        about = provenance(
            session, model, self.pool, self.embedder.hash, planes=planes, text=bool(text and text.strip()), influence=influence
        )
        return Prediction(
            labelmap, total.astype(np.float16), volume.geometry, self._names(evidence), evidence, {}, about, volume.spacing_known
        )

    def _names(self, evidence: list[Evidence]) -> dict[int, str]:
        """The model's label names; where most of what was found is owed to references of something else, the first is named after them."""
        names, pixels, borrowed = dict(self.model.labels), sum(e.pixels for e in evidence), {}
        for e in evidence if self.store is not None else []:
            foreign = self.store.foreign([r.id for r in e.references]) if e.pixels else []
            if foreign:
                borrowed.setdefault(" + ".join(sorted(foreign)), []).append(e.pixels)
        if borrowed and 2 * sum(map(sum, borrowed.values())) > pixels:
            names[min(names)] = max(borrowed, key=lambda name: sum(borrowed[name]))
        return names

    def _borrowed(self, session: Session) -> bool:
        """Whether most of what the slices decoded so far show is owed to references of what the model was not trained for, of which the
        pool has none in some other plane: that one would find nothing, and outvote those that do.
        """
        owed = total = 0
        names: dict[str, None] = {}
        for (name, index), found in session.slices.items() if self.store is not None else ():
            pixels = int((session.planes[name].fused[index] >= self.model.config.threshold).any(0).sum())
            total += pixels
            if pixels and (own := self.store.foreign(found.selection.ids)):
                owed += pixels
                names |= dict.fromkeys(own)
        return 2 * owed > total and not set(PLANES) <= {case["plane"] for case in self.pool.list(label=list(names))}

    def _evidence(self, session: Session, key, mask: np.ndarray, probability: np.ndarray, left: np.ndarray | None = None) -> Evidence:
        plane, found = session.planes[key[0]], session.slices[key]
        weights = found.weights or [None] * len(found.selection.selected)
        agreement = found.agreement or [None] * len(found.selection.selected)
        influence = found.influence or [None] * len(found.selection.selected)
        references = [
            Reference(r.id, r.rank, r.visual, r.cot, w, i, r.pinned, a)
            for r, w, i, a in zip(found.selection.selected, weights, influence, agreement)
        ]
        first, second = plane.plain[key[1]] > 0.5, plane.fused[key[1]] > 0.5
        both = int(first.sum() + second.sum())
        disagreement = 1 - 2 * int((first & second).sum()) / both if both else 0.0
        inside = mask > 0
        return Evidence(
            plane.name,
            key[1],
            plane.view.array_index(key[1]),
            references,
            found.selection.rejected,
            found.selection.coverage,
            pixels=int(inside.sum()),
            disagreement=disagreement,
            confidence=float(probability.max(0)[inside].mean()) if inside.any() else None,
            left_out_runs=[] if left is None else to_runs(left),
            marked=bool(both),
            **told(plane, key[1], mask, session.modality, found.rationale),
        )
