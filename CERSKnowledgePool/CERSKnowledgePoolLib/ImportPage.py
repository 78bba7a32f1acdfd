"""The page that brings cases in and out: from the scene, from folders, from and to another pool; with a preview of each import."""

from __future__ import annotations

import os
from html import escape

import ctk
import qt
import slicer
from CERSSegmentLib import VolumeInput
from CERSSegmentLib.Task import Task
from slicer.i18n import tr as _

from . import SceneCase
from .Pages import wrap
from .PoolSession import PoolSession

MOST_LINES = 30


class ImportPage:
    """Args: say(sentence, wrong): a line for the user."""

    def __init__(self, page, session: PoolSession, say):
        self.page, self.session, self.say = page, session, say
        self._task, self._missing = None, False  # whether what is shown is that something is missing
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        form = qt.QFormLayout()
        layout.addLayout(form)
        self.source = qt.QComboBox(page)
        for words, key in (
            (_("Image and segments of this scene"), "scene"),
            (_("Folders of images and masks"), "folder"),
            (_("Another pool, or an exported file"), "pool"),
        ):
            self.source.addItem(words, key)
        self.source.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self.source.setMinimumContentsLength(14)
        self.source.setToolTip(_("Where the cases come from; a folder may hold DICOM series, with their DICOM SEG files among the masks"))
        self.source.currentIndexChanged.connect(lambda *_index: self._onSource())
        form.addRow(_("From"), self.source)
        self.frames = {key: qt.QWidget(page) for key in ("scene", "folder", "pool")}
        for frame in self.frames.values():
            layout.addWidget(frame)
        self._setUpScene(qt.QFormLayout(self.frames["scene"]))
        self._setUpFolder(qt.QFormLayout(self.frames["folder"]))
        self._setUpPool(qt.QFormLayout(self.frames["pool"]))
        self.said = qt.QWidget(page)
        form = qt.QFormLayout(self.said)
        self.fields = {}
        for name, words, tip in (
            ("modality", _("Modality"), "MR, CT, US …"),
            ("body_site", _("Body site"), _("for instance brain")),
            ("diagnosis", _("Diagnosis"), ""),
            ("annotator", _("Annotator"), _("who drew the masks")),
        ):
            self.fields[name] = qt.QLineEdit(self.said)
            self.fields[name].setPlaceholderText(tip)
            self.fields[name].setToolTip(_("For all cases of which neither the image nor the table says it"))
            form.addRow(words, self.fields[name])
        for inner in (self.frames["scene"].layout(), self.frames["folder"].layout(), self.frames["pool"].layout(), form):
            inner.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.said)
        self.privacy = qt.QLabel(
            _(
                "Patient identifiers are replaced by pseudonyms; names, dates and the name of a volume or of a DICOM folder are dropped. "
                "Preview shows what was found. Check that no name is burnt into the pictures."
            ),
            page,
        )
        wrap(self.privacy)
        layout.addWidget(self.privacy)
        self.keep = qt.QCheckBox(_("Keep what headers say of patients"), page)
        self.keep.setToolTip(
            _(
                "Writes names, dates and numbers of the header, and the image's name, into the field Source of each case, where everyone "
                "who gets this pool can read them; the preview shows them. Else they are dropped"
            )
        )
        layout.addWidget(self.keep)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.preview, self.start = qt.QPushButton(_("Preview"), page), qt.QPushButton(_("Import"), page)
        self.preview.setToolTip(_("Reads everything and says what would be added; nothing is changed"))
        self.start.setToolTip(_("Adds the cases; those that are here already are not added twice"))
        self.preview.clicked.connect(lambda *_checked: self.run(True))
        self.start.clicked.connect(lambda *_checked: self.run(False))
        line.addStretch(1)
        line.addWidget(self.preview)
        line.addWidget(self.start)
        self.result = qt.QTextBrowser(page)
        self.result.setAccessibleName(_("Result"))
        self.result.setMinimumHeight(110)
        layout.addWidget(self.result, 1)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.export = qt.QPushButton(_("Export the whole pool…"), page)
        self.export.setToolTip(_("Writes all cases with rationales and reviews to one file with checksums"))
        self.export.clicked.connect(lambda *_checked: self.onExport())
        line.addStretch(1)
        line.addWidget(self.export)
        self.askPath = self._askPath
        for signal in (
            self.source.currentIndexChanged,
            self.volume.currentNodeIDChanged,
            self.segmentation.currentNodeIDChanged,
            self.segments.itemChanged,
            self.images.currentPathChanged,
            self.other.textChanged,
        ):
            signal.connect(lambda *_arguments: self._tell("") if self._missing else None)
        self._onSource()

    def _setUpScene(self, form) -> None:
        frame = self.frames["scene"]
        self.volume, self.segmentation = slicer.qMRMLNodeComboBox(frame), slicer.qMRMLNodeComboBox(frame)
        for selector, kind in ((self.volume, "vtkMRMLScalarVolumeNode"), (self.segmentation, "vtkMRMLSegmentationNode")):
            selector.nodeTypes = [kind]
            selector.addEnabled = selector.removeEnabled = False
            selector.noneEnabled = True
            selector.setMRMLScene(slicer.mrmlScene)
        self.segmentation.currentNodeIDChanged.connect(lambda *_id: self.listSegments())
        form.addRow(_("Image"), self.volume)
        form.addRow(_("Segmentation"), self.segmentation)
        self.segments = qt.QListWidget(frame)
        self.segments.setMaximumHeight(70)
        self.segments.setToolTip(_("Ticked segments are imported under their names; where two overlap, the lower one in the list counts"))
        form.addRow(_("Segments"), self.segments)

    def _setUpFolder(self, form) -> None:
        self.images, self.masks, self.table = (ctk.ctkPathLineEdit(self.frames["folder"]) for _n in range(3))
        for path, words in ((self.images, _("Images")), (self.masks, _("Masks")), (self.table, _("Table (CSV)"))):
            path.filters = ctk.ctkPathLineEdit.Files if path is self.table else ctk.ctkPathLineEdit.Dirs
            path.sizeAdjustPolicy = ctk.ctkPathLineEdit.AdjustToMinimumContentsLength
            path.minimumContentsLength = 8
            form.addRow(words, path)
        self.masks.toolTip = _("Masks are matched by file name: case7.nii.gz, case7_mask.nii.gz … May be the folder of the images.")
        self.table.toolTip = _("Optional: columns image, patient, diagnosis, modality, body_site, label …")
        self.label = qt.QLineEdit(self.frames["folder"])
        self.label.setPlaceholderText(_("for instance tumor"))
        self.label.setToolTip(
            _(
                "What the masks show, where neither they nor the table say it; with several values: 1=core; 2=edema. "
                "Name it after the structure: references of another name than the model's own labels decide by themselves"
            )
        )
        form.addRow(_("Label"), self.label)

    def _setUpPool(self, form) -> None:
        self.other = qt.QLineEdit(self.frames["pool"])
        self.other.setAccessibleName(_("Pool"))
        self.other.setPlaceholderText(_("an exported .zip file, or a pool's folder"))
        browse = qt.QPushButton(_("File…"), self.frames["pool"])
        browse.setToolTip(_("Chooses an exported file"))
        self.other.setToolTip(_("Its cases are added with rationales and reviews; those that are here already stay as they are"))
        browse.clicked.connect(lambda *_checked: self._browse())
        line = qt.QHBoxLayout()
        line.addWidget(self.other, 1)
        line.addWidget(browse)
        form.addRow(_("Pool"), line)

    def _browse(self) -> None:
        path = qt.QFileDialog.getOpenFileName(self.page, _("Exported pool"), "", "ZIP (*.zip)")
        if path:
            self.other.setText(path)

    @property
    def kind(self) -> str:
        return self.source.itemData(self.source.currentIndex)

    def _onSource(self) -> None:
        for key, frame in self.frames.items():
            frame.setVisible(key == self.kind)
        for widget in (self.said, self.privacy, self.keep):
            widget.setVisible(self.kind != "pool")
        self.updateButtons()

    def updateButtons(self) -> None:
        may = bool(self.session.folder)
        self.preview.setEnabled(may)
        self.start.setEnabled(may and not self.session.readOnly)
        self.export.setEnabled(may)

    def setScene(self, scene) -> None:
        self.volume.setMRMLScene(scene)
        self.segmentation.setMRMLScene(scene)

    def enter(self) -> None:
        """The page comes into view: segments may have been added or renamed."""
        self.listSegments(keep=True)

    def listSegments(self, keep: bool = False) -> None:
        """The segments of the chosen node, all ticked; with ``keep`` those that were not ticked stay so."""
        items = [self.segments.item(n) for n in range(self.segments.count)]
        left = {item.data(qt.Qt.UserRole) for item in items if keep and item.checkState() != qt.Qt.Checked}
        self.segments.clear()
        for identifier, name in SceneCase.segments(self.segmentation.currentNode()):
            item = qt.QListWidgetItem(name)
            item.setData(qt.Qt.UserRole, identifier)
            item.setFlags(qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled)
            item.setCheckState(qt.Qt.Unchecked if identifier in left else qt.Qt.Checked)
            self.segments.addItem(item)

    def run(self, dry: bool) -> None:
        """Previews or starts the import."""
        if self.session.working:  # it may not have read yet what would be written for this one
            self._tell(_("Something else is running. Wait for it, or cancel it."))
            return
        common = {name: edit.text.strip() for name, edit in self.fields.items() if edit.text.strip()}
        if self.kind == "scene":
            self._runScene(dry, common)
        elif self.kind == "folder":
            images, masks, table = (p.currentPath.strip() for p in (self.images, self.masks, self.table))
            if not images:
                self._ask(_("Choose the folder of the images."))
                return
            self._work(
                "pool_import_folder",
                {
                    "images": images,
                    "masks": masks or images,
                    "csv": table or None,
                    "label": self.label.text.strip() or None,
                    **common,
                    "dry_run": dry,
                    "keep_identity": bool(self.keep.checked),
                },
                dry,
            )
        elif not self.other.text.strip():
            self._ask(_("Choose an exported file, or type the folder of a pool."))
        else:
            self._work("pool_merge", {"path": self.other.text.strip(), "dry_run": dry, "who": self.session.who}, dry)

    def _runScene(self, dry: bool, common: dict) -> None:
        volume, segmentation = self.volume.currentNode(), self.segmentation.currentNode()
        listed = {self.segments.item(n).data(qt.Qt.UserRole) for n in range(self.segments.count)}
        self.listSegments(keep=True)  # under the names that they have now
        items = [self.segments.item(n) for n in range(self.segments.count)]
        if listed != {item.data(qt.Qt.UserRole) for item in items}:
            self._tell(_("The segments have changed. Look at the list, then press again."))
            return
        chosen = [(item.data(qt.Qt.UserRole), item.text()) for item in items if item.checkState() == qt.Qt.Checked]
        missing = _("Choose a segmentation.") if segmentation is None else "" if chosen else _("Tick at least one segment.")
        problem = _("Choose an image.") if volume is None else VolumeInput.reject(volume) or missing
        if problem:
            self._ask(problem)
            return
        if self._task is not None and self._task.running:
            self._tell(_("Something else is running. Wait for it, or cancel it."))
            return
        origin = {name: value for name, value in VolumeInput.origin(volume).items() if value}
        person = SceneCase.identifying(volume)
        identity = {name: {"images": 1, "values": [value]} for name, value in person.items()}
        if self.keep.checked:
            origin["source"] = "; ".join(f"{name} {value}" for name, value in person.items())
        self._tell(_("Reading the image…"))
        own = {name: origin[name] for name in ("modality", "body_site") if name in origin}  # what the image says comes first
        epoch = self.session.epoch

        def write(files: dict) -> None:
            if epoch != self.session.epoch:
                self._tell(_("Another pool was chosen while the image was read, so nothing was imported. Press again."))
                return
            self._work("pool_import_volume", {**origin, **common, **own, **files, "dry_run": dry}, dry, identity)

        self._task = Task(
            SceneCase.write(volume, segmentation, chosen, self.session.worker.privateFolder()),
            self.session.worker,
            write,
            lambda error: self._tell(str(error)),
        )

    def _work(self, method: str, params: dict, dry: bool, identity: dict | None = None) -> None:
        if self.session.working:  # begun while the image was read
            self._tell(_("Something else is running. Wait for it, or cancel it."))
            return
        self._tell(_("Looking…") if dry else _("Importing…"))
        kept, before = bool(self.keep.checked), []

        def done(result: dict) -> None:
            self.show(result if identity is None else {**result, "identity": identity}, dry, kept)
            if not dry:
                self.session.changed.emit()

        def failed(sentence: str) -> None:
            self._tell(sentence)
            if not dry:
                self.session.changed.emit()  # what was finished before stays
                self.session.ask("pool_import_report", {}, lambda found: told(sentence, found), lambda _sentence: None)

        def told(sentence: str, found: dict) -> None:
            if found["report"] is not None:
                done(found["report"])
            elif before:  # a worker that did not stop in time was ended, and its report with it
                self._tell(stayed(sentence, found["cases"] - before[0]))

        if not dry:
            self.session.ask("pool_import_report", {"forget": True}, lambda found: before.append(found["cases"]), lambda _sentence: None)
        self.session.work(method, params, done, failed)

    def show(self, result: dict, dry: bool, kept: bool = False) -> None:
        """What an import did or would do. kept: what the headers say of patients was kept."""
        self._missing = False
        added = len(result["added"]) if isinstance(result["added"], list) else result["added"]
        present = len(result["present"]) if isinstance(result["present"], list) else result["present"]
        if dry:
            words = _("One case would be added,") if added == 1 else _("{added} cases would be added,")
        else:
            words = _("One case was added,") if added == 1 else _("{added} cases were added,")
        here = _("one is here already.") if present == 1 else _("{present} are here already.")
        lines = [f"{words} {here}".format(added=f"{added:,}", present=f"{present:,}")]
        if result.get("cancelled"):
            lines.append(
                _("Cancelled; what was finished stays.")
                + (" " + _("Not imported: {count}.").format(count=result["left"]) if result.get("left") else "")
            )
        if result.get("unlisted"):
            lines.append(_("Images left out, because the table does not name them: {count}.").format(count=len(result["unlisted"])))
        if result.get("repeated"):
            names = ", ".join(result["repeated"][:MOST_LINES]) + (" …" if len(result["repeated"]) > MOST_LINES else "")
            lines.append(_("Nothing but what is here, or in another of these images, is in: {names}.").format(names=names))
        if result.get("trashed"):
            lines.append(
                _("Left in the trash of this pool, from where they can be restored: {count}.").format(count=len(result["trashed"]))
            )
        faults = [
            f
            if isinstance(f, str)
            else f"{f['item']}" + (_(" (line {line})").format(line=f["line"]) if f["line"] else "") + f": {f['message']}"
            for f in result.get("faults", [])
        ]
        faults += [
            _("{id}: kept as it is here; the other differs in {names}.").format(id=i, names=", ".join(names))
            for i, names in result.get("different", {}).items()
        ]
        if len(faults) > MOST_LINES:
            faults[MOST_LINES:] = [_("… and {count} more.").format(count=len(faults) - MOST_LINES)]
        items = [
            _("{item}: cases {count} ({labels})").format(item=i["item"], count=i["cases"], labels=", ".join(i["labels"]))
            for i in result.get("items", [])
        ]
        if len(items) > MOST_LINES:
            items[MOST_LINES:] = [_("… and {count} more.").format(count=len(items) - MOST_LINES)]
        self.result.setHtml(
            "".join(f"<p>{escape(line)}</p>" for line in lines)
            + identityHtml(result.get("identity") or {}, kept)
            + "".join(f"<div>✖ {escape(f)}</div>" for f in faults)
            + "".join(f"<div>{escape(i)}</div>" for i in items)
        )

    def _tell(self, words: str) -> None:
        self._missing = False
        self.result.setHtml(escape(words))

    def _ask(self, words: str) -> None:
        """Says what is missing, until something is chosen."""
        self._tell(words)
        self._missing = True

    def _askPath(self) -> str:
        return qt.QFileDialog.getSaveFileName(
            self.page, _("Export the pool"), os.path.join(os.path.expanduser("~"), "pool.zip"), "ZIP (*.zip)"
        )

    def onExport(self) -> None:
        path = self.askPath()

        def written(result: dict) -> None:
            words = _("Wrote one case to {path}.") if result["cases"] == 1 else _("Wrote {count} cases to {path}.")
            self._tell(words.format(count=f"{result['cases']:,}", path=result["path"]))

        if path and not self.session.work("pool_export", {"path": path}, written, self._tell):
            self._tell(_("Something else is running. Wait for it, or cancel it."))

    def cleanup(self) -> None:
        if self._task is not None and self._task.running:
            self._task.cancel()
        self.setScene(None)


def stayed(sentence: str, added: int) -> str:
    """Why an import ended, and what it had added until then."""
    if added <= 0:
        words = _("No case was added.")
    else:
        words = _("One case was added before.") if added == 1 else _("{added} cases were added before.")
    return sentence + " " + words.format(added=f"{added:,}")


def identityHtml(found: dict, kept: bool) -> str:
    """What the headers say of patients, and what becomes of it."""
    if not found:
        return ""
    title = (
        _("The headers say of the patient, and it is KEPT in the field Source:")
        if kept
        else _("The headers say of the patient, and it is dropped:")
    )
    rows = []
    for name, entry in found.items():
        words = ", ".join(entry["values"]) + (" …" if entry["images"] > len(entry["values"]) else "")
        rows.append(f"<tr><td>{escape(name)}&nbsp;&nbsp;</td><td>{escape(words)}</td></tr>")
    return f"<p><b>{escape(title)}</b></p><table cellspacing='0'>{''.join(rows)}</table><p></p>"
