"""Real volumes to try CERS on, offered in Slicer's Sample Data module. Nothing is downloaded before the user clicks one of them."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from cers.sample import FILES, address

CATEGORY = "CERS"
ICONS = Path(__file__).resolve().parents[1] / "Resources" / "Icons"


def register() -> bool:
    """Registers the volumes; False where this application has no Sample Data module."""
    try:
        import SampleData
    except ImportError:
        return False
    sources = (
        (_("Brain tumour (MR)"), "CERSBrain1.png", ("image",)),
        (_("Brain tumour (MR) with expert mask"), "CERSBrain1Mask.png", ("image", "label")),
    )
    for title, picture, parts in sources:
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=title,
            thumbnailFileName=str(ICONS / picture),
            uris=[address("brain1", part) for part in parts],
            fileNames=[f"brain1_{part}.nrrd" for part in parts],
            nodeNames=["brain1" if part == "image" else "brain1 expert mask" for part in parts],
            loadFileType=["VolumeFile" if part == "image" else "SegmentationFile" for part in parts],
            checksums=[f"SHA256:{FILES['brain1'][n]}" for n, _part in enumerate(parts)],
        )
    return True
