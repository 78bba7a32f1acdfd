"""The form of a new training: what to train on, for how long, from which weights; the rest has defaults that seldom need a change."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ctk
import qt
from CERSSegmentLib.FieldNames import nameField
from CERSSegmentLib.Signal import Signal
from slicer.i18n import tr as _

from cers.errors import CersError
from cers.inference import store

from .Pages import wrap
from .TrainingLaunch import START

POOL, FOLDER = "pool", "folder"
MODEL, IMAGENET, RANDOM = "model", "imagenet", "random"
MINUTES = 30
SIZES = (128, 160, 192, 224, 256)
FRAME = 256  # side at which pictures are kept, unless the network's input is larger
DEFAULTS = {
    "method": "cers",
    "evidence": "retrieved",
    "labelled": 1.0,
    "validation": 0.05,
    "seed": 0,
    "groups": 4,
    "members": 5,
    "unlabelled_members": 2,
    "lr": 1e-3,
}


def modelFolder() -> str:
    """The folder of the model in use, "" where there is none."""
    try:
        return str(store.default_folder())
    except CersError:
        return ""


class TrainingForm:
    """The settings of a run as widgets.

    Signals: changed(): the settings are others now.
    """

    def __init__(self, layout, page, modelFolder=modelFolder):
        self.page, self.modelFolder = page, modelFolder
        self.changed = Signal()
        self.pool, self.poolLabels = "", []
        self._leaksOffered = False
        self._base: dict = {}  # settings of a run that was taken over, which have no field
        form = qt.QFormLayout()
        form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        form.setRowWrapPolicy(qt.QFormLayout.WrapLongRows)  # with a large font a narrow panel has no room for name and field
        layout.addLayout(form)
        self._setUpData(form)
        self._setUpRun(form)
        self._setUpAdvanced(layout)
        self._onSource()
        self._onMinutes()

    # widgets

    def _setUpData(self, form) -> None:
        page = self.page
        self.source = self._combo(
            form, _("Labelled pictures"), _("Pictures with masks that a person made"), ((_("The open pool"), POOL), (_("A folder"), FOLDER))
        )
        self.source.currentIndexChanged.connect(lambda *_index: self._onSource())
        self.folder = ctk.ctkPathLineEdit(page)
        nameField(self.folder, _("Folder"))
        self.folder.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Readable
        self.folder.sizeAdjustPolicy = ctk.ctkPathLineEdit.AdjustToMinimumContentsLength
        self.folder.minimumContentsLength = 8
        self.folder.settingKey = "CERS/TrainingFolders"
        self.folder.toolTip = _(
            "A folder of volumes with images/ and labels/; or of pictures with images/train, masks/train and cases.csv; or another pool"
        )
        self.folder.currentPathChanged.connect(lambda *_path: self._emit())
        form.addRow("", self.folder)
        self.labels = qt.QLabel(page)
        wrap(self.labels)
        form.addRow(_("Labels"), self.labels)
        box, line = qt.QWidget(page), qt.QHBoxLayout()
        box.setLayout(line)
        line.setContentsMargins(0, 0, 0, 0)
        self.unlabelled = qt.QListWidget(box)
        self.unlabelled.setMaximumHeight(52)
        self.unlabelled.setToolTip(_("Folders of images or volumes without masks; may be left empty. The method learns from them, too."))
        line.addWidget(self.unlabelled, 1)
        column = qt.QVBoxLayout()
        line.addLayout(column)
        self.addFolder, self.dropFolder = qt.QPushButton(_("Add folder…"), box), qt.QPushButton(_("Remove"), box)
        self.addFolder.setToolTip(_("Adds a folder of images or volumes without masks"))
        self.dropFolder.setToolTip(_("Takes the chosen folder out of the list; nothing is deleted"))
        self.addFolder.clicked.connect(lambda *_checked: self._onAdd())
        self.dropFolder.clicked.connect(lambda *_checked: self._onDrop())
        self.unlabelled.itemSelectionChanged.connect(lambda: self.dropFolder.setEnabled(self.unlabelled.currentRow >= 0))
        self.dropFolder.setEnabled(False)
        for button in (self.addFolder, self.dropFolder):
            column.addWidget(button)
        form.addRow(_("Unlabelled"), box)
        self.askFolder = lambda: qt.QFileDialog.getExistingDirectory(page, _("Folder of images without masks"))

    def _setUpRun(self, form) -> None:
        self.initial = self._combo(
            form,
            _("Start from"),
            _("Which weights the training begins with"),
            ((_("The model in use"), MODEL), (_("ImageNet weights (a new model)"), IMAGENET), (_("Nothing (random weights)"), RANDOM)),
        )
        box, line = qt.QWidget(self.page), qt.QHBoxLayout()
        box.setLayout(line)
        line.setContentsMargins(0, 0, 0, 0)
        self.budget = qt.QComboBox(box)
        for words, minutes in ((_("A quick try"), 5), (_("Short"), 30), (_("Normal"), 120), (_("Overnight"), 480), (_("Other"), 0)):
            self.budget.addItem(words, minutes)
        self.budget.setCurrentIndex(self.budget.findData(MINUTES))
        self.budget.setToolTip(_("How long to train; reading the pictures and looking at the result come on top"))
        self.minutes = qt.QDoubleSpinBox(box)
        self.minutes.setAccessibleName(_("Minutes"))
        self.minutes.setRange(0.05, 100000)
        self.minutes.setDecimals(2)
        self.minutes.setValue(MINUTES)
        self.minutes.setSuffix(_(" min"))
        self.minutes.setMinimumWidth(90)  # else it has room for its largest value, which a narrow panel has not
        self.minutes.setToolTip(_("Minutes of training"))
        self.budget.currentIndexChanged.connect(lambda *_index: self._onBudget())
        self.minutes.valueChanged.connect(lambda *_value: self._onMinutes())
        line.addWidget(self.budget, 1)
        line.addWidget(self.minutes, 1)
        form.addRow(_("Time"), box)
        self.size = self._combo(
            form,
            _("Picture size"),
            _("Side of the pictures that the network sees. Larger ones show finer detail and take longer."),
            [(_("{side} × {side} pixels").format(side=side), side) for side in SIZES],
        )
        self.size.setCurrentIndex(SIZES.index(self._modelSize()))
        self.device = self._combo(
            form,
            _("Compute on"),
            _("Automatic takes the graphics card if there is one that can be used"),
            ((_("Automatic"), "auto"), (_("Processor (CPU)"), "cpu"), (_("NVIDIA graphics card"), "cuda"), (_("Apple graphics"), "mps")),
        )
        self.threads = qt.QSpinBox(self.page)
        self.threads.setRange(0, 256)
        self.threads.setSpecialValueText(_("automatic"))
        self.threads.setToolTip(
            _("Threads of the processor. Fewer leave more of the computer for you; more than there are idle cores slow it down.")
        )
        form.addRow(_("Threads"), self.threads)
        self.name = qt.QLineEdit(self.page)
        self.name.setPlaceholderText(_("named by date and time"))
        self.name.setToolTip(_("Name of the run and of its folder"))
        form.addRow(_("Name"), self.name)

    def _setUpAdvanced(self, layout) -> None:
        self.advanced = ctk.ctkCollapsibleButton(self.page)
        self.advanced.text = _("Advanced")
        self.advanced.collapsed = True
        layout.addWidget(self.advanced)
        form = qt.QFormLayout(self.advanced)
        form.setRowWrapPolicy(qt.QFormLayout.WrapLongRows)
        self.method = self._combo(
            form,
            _("Method"),
            _("How unlabelled pictures and references are used"),
            (
                (_("CERS: with evidence and unlabelled pictures"), "cers"),
                (_("Supervised: labelled pictures only"), "supervised"),
                (_("Mean teacher"), "mean_teacher"),
                (_("Mutual consistency"), "mutual_consistency"),
                (_("UniMatch"), "unimatch"),
            ),
        )
        self.evidence = self._combo(
            form,
            _("Evidence"),
            _("References that the evidence decoder sees; the others are for comparisons"),
            (
                (_("Retrieved references"), "retrieved"),
                (_("Random references"), "random"),
                (_("Shuffled rationales"), "shuffled_rationale"),
                (_("None"), "none"),
            ),
        )
        self.method.currentIndexChanged.connect(lambda *_index: self.evidence.setEnabled(self._data(self.method) == "cers"))
        self.numbers = {}
        for name, words, low, high, decimals, tip in (
            (
                "labelled",
                _("Labelled share"),
                0.001,
                1e6,
                3,
                _("Up to 1: share of the pictures whose masks are used; above 1: how many. The others count as unlabelled."),
            ),
            ("validation", _("Held out"), 0.0, 0.9, 3, _("Share of patients that are not trained on and that the result is measured on")),
            ("seed", _("Seed"), 0, 10**6, 0, _("Another number gives other random draws")),
            ("groups", _("Groups in a batch"), 2, 256, 0, _("Even. Fewer need less memory.")),
            ("members", _("Pictures in a group"), 2, 64, 0, _("Similar labelled pictures, which are references of each other")),
            ("unlabelled_members", _("Unlabelled in a group"), 0, 64, 0, _("Pictures without masks in each group")),
            ("lr", _("Learning rate"), 1e-7, 1.0, 6, _("Smaller steps are steadier and slower")),
        ):
            field = qt.QDoubleSpinBox(self.advanced)
            field.setRange(low, high)
            field.setDecimals(decimals)
            field.setSingleStep(2 if name == "groups" else 1 if decimals == 0 else DEFAULTS[name] / 10 or 0.01)
            field.setValue(DEFAULTS[name])
            field.setToolTip(tip)
            field.valueChanged.connect(lambda *_value: self._emit())
            form.addRow(words, field)
            self.numbers[name] = field
        self.leaks = qt.QCheckBox(_("Train although the pictures overlap"), self.page)
        self.leaks.setToolTip(_("Training and held-out pictures overlap: the figures of such a run say nothing about new patients"))
        self.leaks.stateChanged.connect(lambda *_state: self._emit())
        self.leaks.setVisible(False)
        layout.addWidget(self.leaks)

    def _combo(self, form, words: str, tip: str, entries):
        combo = qt.QComboBox(self.page)
        combo.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        combo.setMinimumContentsLength(10)
        for entry, key in entries:
            combo.addItem(entry, key)
        combo.setToolTip(tip)
        combo.currentIndexChanged.connect(lambda *_index: self._emit())
        form.addRow(words, combo)
        return combo

    @staticmethod
    def _data(combo):
        return combo.itemData(combo.currentIndex)

    @staticmethod
    def _select(combo, value, words: str) -> None:
        """Makes a value the current one, as an entry of its own if there is none yet."""
        if combo.findData(value) < 0:
            combo.addItem(words, value)
        combo.setCurrentIndex(combo.findData(value))

    def _emit(self) -> None:
        self.changed.emit()

    # what the user does

    def _onSource(self) -> None:
        pooled = self._data(self.source) == POOL
        self.folder.setVisible(not pooled)
        if not pooled:
            self.labels.setText(_("as in the folder; Check shows them"))
        elif self.poolLabels:
            self.labels.setText(", ".join(self.poolLabels))
        else:
            self.labels.setText(_("no pool is open, or it is empty"))
        self._emit()

    def _onBudget(self) -> None:
        if self._data(self.budget):
            self.minutes.setValue(self._data(self.budget))

    def _onMinutes(self) -> None:
        value = self.minutes.value
        at = self.budget.findData(int(value)) if value == int(value) else -1
        self.budget.setCurrentIndex(at if at >= 0 else self.budget.findData(0))
        self._emit()

    def _onAdd(self) -> None:
        folder = self.askFolder()
        if folder and folder not in self.unlabelledFolders():
            self.unlabelled.addItem(folder)
            self._emit()

    def _onDrop(self) -> None:
        if self.unlabelled.currentRow >= 0:
            self.unlabelled.takeItem(self.unlabelled.currentRow)
            self.dropFolder.setEnabled(self.unlabelled.currentRow >= 0)
            self._emit()

    def unlabelledFolders(self) -> list[str]:
        return [self.unlabelled.item(n).text() for n in range(self.unlabelled.count)]

    # settings

    def setPool(self, folder: str, labels: list[str]) -> None:
        """Another pool is open, "" = none."""
        if (folder, labels) == (self.pool, self.poolLabels):
            return
        if not self.pool and folder and not self.folder.currentPath:
            self.source.setCurrentIndex(0)
        self.pool, self.poolLabels = folder, labels
        self._onSource()

    def enter(self) -> None:
        """The page comes into view: another model may be in use by now."""
        name = self._modelConfig().get("name")
        self.initial.setItemText(
            self.initial.findData(MODEL), _("The model in use: {name}").format(name=name) if name else _("The model in use")
        )

    def problem(self) -> str:
        """Why the form cannot be used as it is, "" if it can."""
        if self._data(self.source) == POOL and not self.pool:
            return _("No pool is open. Open one above, or choose a folder of labelled pictures.")
        if self._data(self.source) == FOLDER and not self.folder.currentPath.strip():
            return _("Choose the folder of the labelled pictures.")
        if self.numbers["groups"].value % 2:
            return _("The number of groups in a batch must be even.")
        if self._data(self.initial) == MODEL and not self._modelConfig():
            return _("There is no model in use to start from. Choose ImageNet weights.")
        return ""

    def settings(self) -> dict:
        """The configuration of the run, as the form says."""
        pooled = self._data(self.source) == POOL
        record = {
            **self._base,
            "data": self.pool if pooled else os.path.abspath(self.folder.currentPath.strip()),
            "unlabelled": self.unlabelledFolders(),
            "steps": 0,
            "minutes": round(self.minutes.value, 2),
            "size": int(self._data(self.size)),
            "device": self._data(self.device),
            "threads": int(self.threads.value),
            "method": self._data(self.method),
            "evidence": self._data(self.evidence),
            "allow_leaks": bool(self._leaksOffered and self.leaks.checked),
        }
        for name, field in self.numbers.items():
            record[name] = int(field.value) if field.decimals == 0 else round(field.value, field.decimals)
        if "frame" not in self._base or record["size"] != self._base.get("size"):
            record["frame"] = max(FRAME, -(-record["size"] // 32) * 32)
        initial = self._data(self.initial)
        if initial == MODEL:
            record["initial"] = os.path.join(self.modelFolder(), "model.safetensors")
            record["network"] = self._network()
        else:
            record["initial"] = initial
        return record

    def fill(self, record: dict, name: str = "") -> None:
        """Takes over the settings of a run; what they lack is as at the start."""
        self._base = {k: v for k, v in record.items() if k not in ("steps", "minutes", "allow_leaks")}
        data = str(record.get("data") or "")
        if not data or data == self.pool:
            self.source.setCurrentIndex(self.source.findData(POOL))
        else:
            self.source.setCurrentIndex(self.source.findData(FOLDER))
            self.folder.currentPath = data
        self.unlabelled.clear()
        for folder in record.get("unlabelled") or []:
            self.unlabelled.addItem(str(folder))
        minutes = float(record.get("minutes") or 0)
        self.minutes.setValue(minutes or MINUTES)
        initial = str(record.get("initial") or (MODEL if self._modelConfig() else IMAGENET))
        if initial == os.path.join(self.modelFolder(), "model.safetensors") and record.get("network") == self._network():
            initial = MODEL
        path = Path(initial)
        self._select(
            self.initial,
            initial,
            _("What the run '{name}' began with").format(name=path.parent.name)
            if path.name == START
            else _("Weights of {file}").format(file=initial),
        )
        size = int(record.get("size") or self._modelSize())
        self._select(self.size, size, _("{side} × {side} pixels").format(side=size))
        self._select(self.device, record.get("device") or "auto", str(record.get("device")))
        self.threads.setValue(int(record.get("threads") or 0))
        self._select(self.method, record.get("method") or DEFAULTS["method"], str(record.get("method")))
        self._select(self.evidence, record.get("evidence") or DEFAULTS["evidence"], str(record.get("evidence")))
        for key, field in self.numbers.items():
            field.setValue(float(record.get(key, DEFAULTS[key])))
        self.name.setText(name)
        self.offerLeaks(False)
        self._onSource()

    def offerLeaks(self, on: bool) -> None:
        """Shows the box that lets a run start although its splits leak; hidden, it counts as off."""
        self._leaksOffered = on
        self.leaks.setVisible(on)
        if not on:
            self.leaks.checked = False

    def _modelConfig(self) -> dict:
        try:
            config = json.loads((Path(self.modelFolder()) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return config if isinstance(config, dict) and isinstance(config.get("network"), dict) else {}

    def _network(self) -> dict:
        """With the names of the channels where there are several, so that those of the pool are brought into their order."""
        return {k: v for k, v in self._modelConfig().get("network", {}).items() if k != "labels" or len(v) > 1}

    def _modelSize(self) -> int:
        size = self._modelConfig().get("size")
        return size if size in SIZES else SIZES[0]
