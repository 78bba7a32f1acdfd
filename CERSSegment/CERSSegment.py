"""CERS Segment: lesion segmentation with evidence. The module's parts lie in CERSSegmentLib."""

import sys

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class CERSSegment(ScriptedLoadableModule):
    """What the application shows of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("CERS Segment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "SubjectHierarchy", "Terminologies"]
        self.parent.contributors = ["CERS contributors"]
        self.parent.helpText = _(
            "Segments lesions and shows the evidence: which annotated cases each slice was decoded with, why they were chosen, which "
            "look-alikes were refused and why, with measured descriptions. Choose a volume and a pool of annotated cases, press Segment, "
            "and scroll through the slices. Everything is computed on this machine.<br><br><b>Not for clinical use.</b> The result is a "
            "suggestion for research; look at it yourself."
        )
        self.parent.acknowledgementText = _(
            "The method follows 'Beyond Visual Cues: CoT-Enhanced Reasoning for Semi-supervised Medical Image Segmentation' "
            "(arXiv:2606.17958)."
        )
        # when all modules are there, the one with the sample data among them
        slicer.app.startupCompleted.connect(registerSampleData)


def registerSampleData():
    """Offers a real volume in the Sample Data module; nothing is downloaded yet."""
    from CERSSegmentLib import SampleVolumes

    SampleVolumes.register()


class CERSSegmentWidget(ScriptedLoadableModuleWidget):
    """Loads the form and hands it to CERSSegmentLib."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.control = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from CERSSegmentLib.Widget import Widget

        form = slicer.util.loadUI(self.resourcePath("UI/CERSSegment.ui"))
        self.layout.addWidget(form)
        self.layout.addStretch(1)
        self.ui = slicer.util.childWidgetVariables(form)
        form.setMRMLScene(slicer.mrmlScene)
        self.control = Widget(form, self.ui)

    def enter(self):
        if self.control is not None:
            self.control.enter()

    def exit(self):
        if self.control is not None:
            self.control.exit()

    def cleanup(self):
        if self.control is not None:
            self.control.cleanup()
            self.control = None

    def onReload(self):
        # reloading the module file alone would leave its parts as they were
        for name in [n for n in sys.modules if n.split(".")[0] == "CERSSegmentLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class CERSSegmentLogic(ScriptedLoadableModuleLogic):
    """For scripts: ``CERSSegmentLogic().segmentation`` runs without a panel; see CERSSegmentLib.SegmentationLogic."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)
        from CERSSegmentLib.SegmentationLogic import SegmentationLogic

        self.segmentation = SegmentationLogic()


class CERSSegmentTest(ScriptedLoadableModuleTest):
    """Runs the module's own checks inside the application (Reload and Test)."""

    def runTest(self):
        self.setUp()
        from CERSSegmentLib import SelfTest

        SelfTest.run(self)
