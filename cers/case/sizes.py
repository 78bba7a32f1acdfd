"""How much of a label was found, in words, and how the mask differs from its probabilities; nothing that was not measured."""

from __future__ import annotations

from collections.abc import Mapping


def amount(sizes: Mapping, label: str) -> str:
    """For instance "1.23 ml"; of a single slice "210 mm²"; where pixels have no known size "456 pixels (1.2 % of the picture)".

    Args:
        sizes: ``Prediction.sizes()``, or a summary that holds them.
    """
    if sizes.get("volume_ml"):
        return f"{sizes['volume_ml'][label]:.2f} ml"
    if sizes.get("area_mm2"):
        return f"{sizes['area_mm2'][label]:.0f} mm²"
    if sizes.get("picture_share"):
        return f"{sizes['pixels'][label]} pixels ({100 * sizes['picture_share'][label]:.1f} % of the picture)"
    return f"{sizes['pixels'][label]} voxels"


def cut_words(cut: Mapping | None) -> str:
    """How a mask differs from its probabilities cut at the threshold (``Prediction.cut``); '' where it does not."""
    if not cut or not cut["below"] + cut["above"]:
        return ""
    return (
        f"The mask is not the probabilities cut at {cut['threshold']:.2f}: {cut['below']} voxels of it are below, {cut['above']} voxels "
        "that reach it were left out (planes are fused part by part, small parts may be dropped, slices decoded again)."
    )
