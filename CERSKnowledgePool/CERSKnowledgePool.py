"""CERS Knowledge Pool: the annotated cases that evidence comes from. The module's parts lie in CERSKnowledgePoolLib."""

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


class CERSKnowledgePool(ScriptedLoadableModule):
    """What the application shows of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("CERS Knowledge Pool")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["CERSSegment", "Segmentations"]  # its library talks to the worker and draws the pictures
        self.parent.contributors = ["CERS contributors"]
        self.parent.helpText = _(
            "Shows and mends the pool of annotated cases that CERS Segment takes its evidence from: filter and search its cases, see each "
            "with contour, rationale and history, approve, flag, exclude, edit or delete it, check the pool for duplicates and "
            "contradictions, import cases from the scene, from folders or from another pool, train a model in the background, and choose "
            "the model in use. Nothing leaves this machine, unless you ask a language model at another address for rationales and agree to "
            "it.<br><br><b>Not for clinical use.</b>"
        )
        self.parent.acknowledgementText = _(
            "The method follows 'Beyond Visual Cues: CoT-Enhanced Reasoning for Semi-supervised Medical Image Segmentation' "
            "(arXiv:2606.17958)."
        )


class CERSKnowledgePoolWidget(ScriptedLoadableModuleWidget):
    """Loads the form and hands it to CERSKnowledgePoolLib."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.control = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from CERSSegmentLib import Paths

        Paths.makeImportable()
        from CERSKnowledgePoolLib.PoolWidget import PoolWidget

        form = slicer.util.loadUI(self.resourcePath("UI/CERSKnowledgePool.ui"))
        self.layout.addWidget(form)
        self.ui = slicer.util.childWidgetVariables(form)
        self.control = PoolWidget(self.ui, CERSKnowledgePoolLogic().session())

    def enter(self):
        if self.control is not None:
            self.control.enter()

    def cleanup(self):
        if self.control is not None:
            self.control.cleanup()
            self.control = None

    def onReload(self):
        # reloading the module file alone would leave its parts as they were
        for name in [n for n in sys.modules if n.split(".")[0] == "CERSKnowledgePoolLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class CERSKnowledgePoolLogic(ScriptedLoadableModuleLogic):
    """For scripts and the panel."""

    def session(self):
        """A ``PoolSession``: a pool reached through a worker process, without a panel; to be ended with its ``stop``."""
        from CERSKnowledgePoolLib.PoolSession import PoolSession

        return PoolSession()


class CERSKnowledgePoolTest(ScriptedLoadableModuleTest):
    """Runs the module's own checks inside the application (Reload and Test)."""

    def runTest(self):
        self.setUp()
        from CERSKnowledgePoolLib import SelfTest

        SelfTest.run(self)
