"""What a reader is told of a slice: measured under the mask that is shown, not under the first one, by which the references were chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..case import Evidence, PlaneView, Prediction, Rationale
from ..rationale import contradictions, describe, without_place
from .planes import Plane


def told(plane: Plane, index: int, mask: np.ndarray, modality: str | None, first: Rationale | None) -> dict:
    """The fields of ``Evidence`` that words are in. Of a picture none says where in the patient: nobody knows its plane and its sides.

    Args:
        mask: (rows, columns), the final one. first: measured under the first mask, None where there is none.
    """
    inside = mask > 0
    final = describe(plane.raw[index], inside, plane.spacing, modality=modality, plane=plane.name) if inside.any() else None
    if plane.spacing is None and len(plane.raw) == 1:
        first, final = (r and without_place(r, modality=modality) for r in (first, final))
    differs = [] if final is None or first is None else contradictions(first, final)
    return {"rationale": final, "first_rationale": first, "first_differs": differs}


def crossed(prediction: Prediction, planes: dict[str, Plane], key: tuple[str, int], changed: np.ndarray, modality: str | None):
    """The evidence of slices of other planes, anew, that hold a pixel of slice ``key`` whose label was changed in the prediction.

    Args:
        changed: (rows, columns) bool, of slice ``key``.
    """
    touched = _touched(planes[key[0]].view, key[1], changed, {n: p.view for n, p in planes.items() if n != key[0]})
    out = []
    for e in prediction.evidence:
        if (e.plane, e.index) in touched:
            view = planes[e.plane].view
            mask = view.slices(prediction.labelmap)[e.index]
            inside = mask > 0
            probability = np.stack([view.slices(channel)[e.index] for channel in prediction.probabilities]).max(0)
            confidence = float(probability[inside].mean(dtype=np.float64)) if inside.any() else None
            words = told(planes[e.plane], e.index, mask, modality, e.first_rationale)
            out.append(replace(e, pixels=int(inside.sum()), confidence=confidence, **words))
    return out


def renew(evidence: list[Evidence], new: list[Evidence]) -> list[Evidence]:
    """A list of evidence in which that of some slices is replaced."""
    by_slice = {(e.plane, e.index): e for e in new}
    return [by_slice.get((e.plane, e.index), e) for e in evidence]


def _touched(view: PlaneView, index: int, changed: np.ndarray, others: dict[str, PlaneView]) -> set[tuple[str, int]]:
    """(plane, index) of the slices of other planes that hold a changed pixel of a slice."""
    rows, columns = np.nonzero(changed)
    at = dict(zip(view.axes, (np.full(len(rows), index), rows, columns)))  # array axis -> display position along it
    flipped = dict(zip(view.axes, view.flips))
    out = set()
    for name, other in others.items():
        axis = other.axes[0]
        along = other.geometry.shape[axis] - 1 - at[axis] if flipped[axis] else at[axis]
        out |= {(name, other.display_index(int(n))) for n in np.unique(along)}
    return out
