"""The volumes that are offered in Slicer's Sample Data module."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import pytest
from segmentkit import load

from cers.sample import FILES, PARTS


class SampleDataLogic:
    """Takes what Slicer's class of this name takes, by name."""

    registered: list[dict] = []

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileType="VolumeFile",
        loadFiles=None,
        loadFileProperties={},
        checksums=None,
    ):
        SampleDataLogic.registered.append(dict(locals()))


@pytest.fixture
def sample_data(monkeypatch):
    module = types.ModuleType("SampleData")
    module.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    SampleDataLogic.registered.clear()
    return SampleDataLogic.registered


def test_registered_when_the_application_has_started(host, sample_data):
    from PySide6.QtGui import QImage

    load(host)
    assert not sample_data, "not before all modules are there"
    host.app.startupCompleted.emit()
    assert [s["sampleName"] for s in sample_data] == ["Brain tumour (MR)", "Brain tumour (MR) with expert mask"]
    for source in sample_data:
        count = len(source["uris"])
        assert (
            all(len(source[k]) == count for k in ("fileNames", "nodeNames", "loadFileType", "checksums")) and source["category"] == "CERS"
        )
        assert all(u.startswith("https://") and u.endswith(f) for u, f in zip(source["uris"], source["fileNames"]))
        assert source["checksums"] == [f"SHA256:{d}" for d in FILES["brain1"][:count]]
        icon = QImage(source["thumbnailFileName"])
        assert not icon.isNull() and max(icon.width(), icon.height()) <= 256 and Path(source["thumbnailFileName"]).stat().st_size < 60_000


def test_an_application_without_the_module_is_no_error(host, monkeypatch):
    load(host)
    from CERSSegmentLib import SampleVolumes

    monkeypatch.setitem(sys.modules, "SampleData", None)
    assert SampleVolumes.register() is False


def test_what_would_be_downloaded_loads_as_registered(host, scene, sample_data, cers_data):
    """With the real files in place of the download: an image, and the expert's mask as a segmentation."""
    load(host)
    from CERSSegmentLib import SampleVolumes

    SampleVolumes.register()
    files = {f"brain1_{part}.nrrd": cers_data / "volumes" / "brain1" / f"{part}.nrrd" for part in PARTS}
    source = sample_data[1]
    for name, kind, checksum in zip(source["fileNames"], source["loadFileType"], source["checksums"]):
        assert "SHA256:" + hashlib.sha256(files[name].read_bytes()).hexdigest() == checksum
        if kind == "VolumeFile":
            node = host.slicer.util.loadVolume(str(files[name]))
            assert node.GetImageData().GetDimensions() == (256, 256, 25)
        else:
            node = host.slicer.util.loadSegmentation(str(files[name]))
            assert node.GetSegmentation().GetNumberOfSegments() == 1
