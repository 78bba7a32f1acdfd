"""How much of a label was found, in words, and how the mask differs from its probabilities; nothing that was not measured."""

from __future__ import annotations

from collections.abc import Mapping

from ..words import plural


def small(ml: float) -> bool:
    """Whether a volume is told in mm³ rather than in ml."""
    return 0 < round(ml, 4) < 0.1


def digits(value: float) -> str:
    """A number without places after the point from 10 on, below with two digits: what is there is never told as 0."""
    return f"{value:.0f}" if value >= 9.95 or not value else f"{value:.2g}"


def percent(share: float) -> str:
    """A share of 0..1 in percent with one place after the point, without its sign; what is there is never told as 0."""
    return "<0.1" if 0 < share < 0.0005 else f"{100 * share:.1f}"


def area(pixels: int, spacing: tuple[float, float]) -> str:
    """For instance "1.23 cm²", "4 mm²". spacing: (row, column) in mm."""
    mm2 = pixels * spacing[0] * spacing[1]
    return f"{mm2 / 100:.2f} cm²" if mm2 >= 10 or not mm2 else f"{digits(mm2)} mm²"


def told(number: int, noun: str) -> str:
    """Pixels or voxels, as they are told beside other figures: "1 pixel", "1204 voxels"."""
    return f"{number} {plural(number, noun)}"


def amount(sizes: Mapping, label: str) -> str:
    """For instance "1.23 ml", "37 mm³"; of a single slice "210 mm²"; where pixels have no known size "456 pixels (1.2 % of the picture)".

    Args:
        sizes: ``Prediction.sizes()``, or a summary that holds them.
    """
    if sizes.get("volume_ml"):
        ml = sizes["volume_ml"][label]
        return f"{digits(1000 * ml)} mm³" if small(ml) else f"{ml:.2f} ml"
    if sizes.get("area_mm2"):
        return f"{digits(sizes['area_mm2'][label])} mm²"
    if sizes.get("picture_share"):
        return f"{told(sizes['pixels'][label], 'pixel')} ({percent(sizes['picture_share'][label])} % of the picture)"
    return told(sizes["pixels"][label], "voxel")


def cut_words(cut: Mapping | None) -> str:
    """How a mask differs from its probabilities cut at the threshold (``Prediction.cut``); '' where it does not."""
    if not cut or not cut["below"] + cut["above"]:
        return ""
    below, above = cut["below"], cut["above"]
    under = f"{told(below, 'voxel')} of it {plural(below, 'is', 'are')}"
    over = f"{told(above, 'voxel')} that {'reaches it was' if above == 1 else 'reach it were'}"
    return (
        f"The mask is not the probabilities cut at {cut['threshold']:.2f}: {under} below, {over} left out (planes are fused part by part, "
        "small parts may be dropped, slices decoded again, probabilities are kept rounded)."
    )
