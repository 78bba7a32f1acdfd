"""What a screen reader says of fields: the words of the label before them, or words of their own."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _


def nameFields(panel) -> None:
    """Gives the fields of a panel the words of their labels as names; those that have a name keep it."""
    for label in panel.findChildren(qt.QLabel):
        if label.buddy() is not None:
            nameField(label.buddy(), label.text.replace("&", "").rstrip(": "))


def nameField(field, words: str) -> None:
    """Names a field and what it is made of: of a path with its button, the keyboard reaches these and not the field around them."""
    kinds = qt.QComboBox, qt.QAbstractSpinBox, qt.QAbstractSlider, qt.QLineEdit, qt.QAbstractItemView
    for part in [field, *(part for kind in kinds for part in field.findChildren(kind))]:
        if not part.accessibleName:
            part.setAccessibleName(words)
    for button in field.findChildren(qt.QToolButton):
        if button.text in ("…", "..."):
            button.setAccessibleName(_("Browse for {field}").format(field=words))
