"""Whether the pool already holds what is to be evaluated: such cases as evidence would make masks look better than they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..case import PlaneView, Volume, acquisition_plane
from ..case.geometry import PLANES
from ..pool import Pool, image_hash, thumbnail
from ..pool.thumbnail import HASH as THUMBNAIL
from ..words import counted, plural

CORRELATION = 0.99
REASONS = {
    "identical": "with the very same picture",
    "same_volume": "of the same volume",
    "same_patient": "of the same patient",
    "same_group": "of the same group",
    "near_duplicate": f"that are near-duplicates (thumbnail correlation above {CORRELATION})",
}
_NAMED = 10  # case ids named per reason


@dataclass
class LeakCheck:
    """Compares images with every case of a pool, one by one; ``report`` sums up."""

    pool: Pool
    found: list[dict] = field(default_factory=list)
    checked: int = 0

    def __post_init__(self):
        self._facts = self.pool.facets()
        self._ids, self._thumbnails = self.pool.vectors("thumbnail", THUMBNAIL)
        self._planes = {f[6] for f in self._facts} & set(PLANES)

    def add(self, name: str, volume: Volume, patient: str | None = None, group: str | None = None) -> dict | None:
        """What of the pool is too close to this image: reason -> {"count", "cases"}; None if nothing is.

        Args:
            patient: pseudonym, as pool cases carry it. Slices are compared in the plane the scanner took and in those of the pool's cases.
        """
        identical: set[str] = set()
        twins: dict[str, float] = {}
        planes = {acquisition_plane(volume.geometry)} | (self._planes if min(volume.geometry.shape) > 1 else set())
        if min(volume.geometry.shape) == 1 and not volume.spacing_known:
            planes = {"axial"}
        for plane in sorted(planes):
            slices = PlaneView(volume.geometry, plane).slices(volume.array)
            for picture in slices:
                identical.update(self.pool.find(image_hash(picture)))
            if len(self._ids):
                close = np.stack([thumbnail(p) for p in slices]) @ self._thumbnails.T
                for column in np.flatnonzero(close.max(0) > CORRELATION):
                    case = self._ids[column]
                    twins[case] = max(twins.get(case, 0.0), float(close[:, column].max()))
        own_volume = {volume.volume_id, volume.content_hash[:16]} - {None}
        found = {
            "identical": sorted(identical),
            "same_volume": [f[0] for f in self._facts if f[2] in own_volume],
            "same_patient": [f[0] for f in self._facts if patient and f[1] == patient],
            "same_group": [f[0] for f in self._facts if group and f[3] == group],
            "near_duplicate": sorted(set(twins) - identical, key=lambda c: -twins[c]),
        }
        self.checked += 1
        reasons = {reason: {"count": len(cases), "cases": cases[:_NAMED]} for reason, cases in found.items() if cases}
        if not reasons:
            return None
        if "near_duplicate" in reasons:
            reasons["near_duplicate"]["correlation"] = round(max(twins[c] for c in found["near_duplicate"]), 4)
        self.found.append({"image": name, **reasons})
        return reasons

    def report(self) -> dict:
        """checked, pool_cases, leaking (number of images), by_reason (number of images per reason), images."""
        return {
            "checked": self.checked,
            "pool_cases": len(self._facts),
            "leaking": len(self.found),
            "by_reason": {r: n for r in REASONS if (n := sum(r in f for f in self.found))},
            "images": self.found,
        }


def leaking(result: dict) -> int:
    """How many of the images that a result is of leak; others may have been left out for it."""
    evaluated = {case["image"] for case in result["cases"]}
    return sum(row["image"] in evaluated for row in (result["leak"] or {}).get("images", ()))


def leak_words(report: dict | None, most: int = 20) -> str:
    """The report for people, the first ``most`` images by name."""
    if report is None:
        return "Leak report: no pool was given, so there is nothing that could leak from one."
    head = f"Leak report: {counted(report['checked'], 'image')} against {counted(report['pool_cases'])} of the pool: "
    if not report["leaking"]:
        return head + "none is in the pool, related to one of its cases, or a near-duplicate of one."
    by_reason = "; ".join(f"{n} with cases {REASONS[r]}" for r, n in report["by_reason"].items())
    lines = [head + f"{report['leaking']} of the images {plural(report['leaking'], 'LEAKS', 'LEAK')} ({by_reason})."]
    for row in report["images"][:most]:
        reasons = [
            f"cases {REASONS[r]}: {row[r]['count']} ({', '.join(row[r]['cases'][:3])}{', ...' if row[r]['count'] > 3 else ''})"
            for r in REASONS
            if r in row
        ]
        lines.append(f"  {row['image']}: {'; '.join(reasons)}")
    if report["leaking"] > most:
        lines.append(f"  and {report['leaking'] - most} more, named in the JSON file.")
    return "\n".join(lines)
