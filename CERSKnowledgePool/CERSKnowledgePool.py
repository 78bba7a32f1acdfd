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
        self.parent.dependencies = ["CERSSegment"]  # pictures with contours are drawn by its library
        self.parent.contributors = ["CERS contributors"]
        self.parent.helpText = _(
            "Shows the pool of annotated cases that CERS Segment takes its evidence from: their labels, origin, review and rationale, and each "
            "case's picture with the expert's contour. The pool is only read here. A pool is made and filled with the command "
            "<tt>cers pool</tt>.<br><br><b>Not for clinical use.</b>")
        self.parent.acknowledgementText = _(
            "The method follows 'Beyond Visual Cues: CoT-Enhanced Reasoning for Semi-supervised Medical Image Segmentation' (arXiv:2606.17958).")


class CERSKnowledgePoolWidget(ScriptedLoadableModuleWidget):
    """Loads the form and hands it to CERSKnowledgePoolLib."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.control = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from CERSKnowledgePoolLib.PoolWidget import PoolWidget

        form = slicer.util.loadUI(self.resourcePath("UI/CERSKnowledgePool.ui"))
        self.layout.addWidget(form)
        self.ui = slicer.util.childWidgetVariables(form)
        self.control = PoolWidget(self.ui, CERSKnowledgePoolLogic())

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
    """For scripts and the panel: reads a pool without changing it."""

    def startReading(self, folder):
        """A ``Reading`` of a pool's folder, to be stepped by the panel."""
        from CERSKnowledgePoolLib.PoolReader import Reading

        return Reading(folder)

    def readPool(self, folder):
        """``PoolContents`` of a pool's folder; raises ``PoolUnreadable`` with one sentence for the screen."""
        from CERSKnowledgePoolLib.PoolReader import readPool

        return readPool(folder)

    def readCase(self, folder, case_id):
        """One ``cers.case.Case`` with its arrays; raises ``PoolUnreadable``."""
        from CERSKnowledgePoolLib.PoolReader import readCase

        return readCase(folder, case_id)


class CERSKnowledgePoolTest(ScriptedLoadableModuleTest):
    """Runs the module's own checks inside the application (Reload and Test)."""

    def runTest(self):
        self.setUp()
        from CERSKnowledgePoolLib import SelfTest

        SelfTest.run(self)
