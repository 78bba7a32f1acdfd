"""A stand-in for Slicer's Qt side, for tests of scripted modules on a machine without Slicer.

The MRML scene, logics and displayable managers are the real ones (``slicer-core``); Qt is PySide6 with PythonQt's
manners; the few ctk and qMRML widgets offer only what the real classes show to Python (``api_facts.json``).
What it cannot show: the segment editor, the DICOM browser, the extensions manager and PythonQt's ownership rules.

    host = slicerhost.start()
    window = host.show_main_window()
    panel = host.enter_module(host.load_module("MyModule/MyModule.py"))
    host.screenshot(window, "window.png")
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Must be in the environment before Qt and VTK are imported.
ENVIRONMENT = {
    "QT_QPA_PLATFORM": "offscreen",
    "PYSIDE6_OPTION_PYTHON_ENUM": "2",  # enums are integers, as in PythonQt
}
if sys.platform.startswith("linux"):  # elsewhere VTK renders off screen by itself
    ENVIRONMENT["VTK_DEFAULT_OPENGL_WINDOW"] = "vtkOSOpenGLRenderWindow"
_host: Host | None = None


def _spare_singletons() -> None:
    """PySide6 6.12 takes None, True and False for immortal and gives back references that it never took, which ends the process
    after some ten thousand calls. From Python 3.12 on they are immortal; before, they get enough references here."""
    if sys.version_info < (3, 12):
        for singleton in (None, True, False):
            ctypes.c_ssize_t.from_address(id(singleton)).value += 1 << 40


class Host:
    """The running stand-in; one per process."""

    def __init__(self):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        _spare_singletons()
        from . import pythonqt

        self.qt = pythonqt.install()
        import slicer
        import slicer.util

        from . import ctkwidgets, layout, modules, mrmlwidgets, plots, scripted, views

        ctkwidgets.install()
        for part in (mrmlwidgets, views, plots, layout, modules, scripted):
            part.install()
        from .application import make_application

        self.slicer = slicer
        self.app = make_application()
        self.window = None

    def show_main_window(self, width: int = 1400, height: int = 900, panel_width: int = 480):
        """The main window with its views; made once, then shown again and resized."""
        if self.window is None:
            from .application import qSlicerMainWindow

            self.window = qSlicerMainWindow(width, height, panel_width)
        self.window._attach(True)
        self.window.resize(width, height)
        self.window.show()
        self.process()
        return self.window

    def close_main_window(self) -> None:
        """Back to the state of an application without a main window: ``layoutManager()`` is None."""
        if self.window is not None:
            self.window._attach(False)
            self.window.hide()
            self.process()

    def unload_modules(self) -> None:
        """What the application does when it quits: every panel is told to clean up."""
        from .modules import qSlicerScriptedLoadableModule

        self.close_main_window()
        for module in list(vars(self.slicer.modules).values()):
            if isinstance(module, qSlicerScriptedLoadableModule):
                self.app.moduleManager().moduleAboutToBeUnloaded.emit(module.name)
        self.process(0.05)

    def use_dark_style(self, on: bool) -> None:
        """Slicer's dark palette, or the light one again."""
        qt = self.qt
        palette = qt.QPalette()
        if on:
            roles = {"Window": "#323232", "WindowText": "#fff", "Base": "#2a2a2a", "AlternateBase": "#3a3a3a", "Text": "#fff",
                     "Button": "#3c3c3c", "ButtonText": "#fff", "ToolTipBase": "#2a2a2a", "ToolTipText": "#fff",
                     "PlaceholderText": "#8a8a8a", "Highlight": "#2a6ab0", "HighlightedText": "#fff", "Link": "#6ab0f0",
                     "Mid": "#505050", "Light": "#5a5a5a", "Dark": "#232323"}  # fmt: skip
            for role, color in roles.items():
                palette.setColor(getattr(qt.QPalette, role), qt.QColor(color))
            for role in ("WindowText", "Text", "ButtonText"):
                palette.setColor(qt.QPalette.Disabled, getattr(qt.QPalette, role), qt.QColor("#808080"))
        self.app.setPalette(palette if on else self.app.style().standardPalette())
        self.process()

    def load_module(self, path: str | os.PathLike):
        """Import a scripted module's file and register it in ``slicer.modules``."""
        from .modules import load_module

        return load_module(path)

    def enter_module(self, module):
        """Show the module's panel (in the main window where there is one); returns the module's widget object."""
        if self.app.layoutManager() is not None:
            self.window.moduleSelector().selectModule(module.name)
        else:
            module.widgetRepresentation().enter()
        self.process()
        return module.widgetRepresentation().self()

    def process(self, seconds: float = 0.0) -> None:
        """Let Qt work, at least for ``seconds``."""
        end = time.monotonic() + seconds
        self.app.processEvents()
        while time.monotonic() < end:
            time.sleep(0.005)
            self.app.processEvents()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30.0, what: str = "the expected state") -> None:
        """Let Qt work until ``condition()``; AssertionError after ``seconds``."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{what} was not reached in {seconds:g} s")
            self.process(0.01)

    def screenshot(self, widget, path: str | os.PathLike) -> Path:
        """Save a widget's picture as PNG after its layout and views have settled."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.process(0.05)
        if not widget.grab().save(str(path)):
            raise OSError(f"{path} cannot be written")
        return path


def start() -> Host:
    """The host of this process, started at the first call."""
    global _host
    if _host is None:
        _host = Host()
    return _host
