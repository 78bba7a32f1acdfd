"""Prompts: templates in ``Resources/prompts``, and what is filled into them.

Only measured numbers and words of closed lists reach a prompt. What people typed (names, sources, diagnoses, label names) and what
stands in image headers never does, so that neither patient data nor a hidden instruction can.
"""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass
from pathlib import Path

from ...case import Case, Rationale
from ...case.geometry import PLANES
from ...errors import CersError, InputError
from ...resources import resource
from ..descriptors import DESCRIPTORS
from ..writer import THRESHOLDS

FOLDER = "prompts"
DEFAULT = "rationale-1"  # the template of today; an earlier one stays in the folder, so that its texts can be made again
MODALITIES = {"CR", "CT", "DX", "MG", "MR", "NM", "OCT", "PT", "US", "XA"}
BODY_SITES = {
    "abdomen",
    "ankle",
    "bladder",
    "bone",
    "brain",
    "breast",
    "cervix",
    "chest",
    "colon",
    "elbow",
    "esophagus",
    "eye",
    "foot",
    "hand",
    "head",
    "head and neck",
    "heart",
    "hip",
    "hippocampus",
    "kidney",
    "knee",
    "larynx",
    "liver",
    "lung",
    "mediastinum",
    "neck",
    "ovary",
    "pancreas",
    "pelvis",
    "prostate",
    "rectum",
    "shoulder",
    "skin",
    "small bowel",
    "spine",
    "spleen",
    "stomach",
    "thyroid",
    "uterus",
    "wrist",
}
_SECTIONS = ("system", "user", "picture", "text only")
_FIELDS = {"about", "picture", "draft", "descriptors"}


@dataclass(frozen=True)
class Prompt:
    """One template. ``version`` names it and its exact content, so that texts made with an edited file are never taken for its own."""

    name: str
    version: str
    system: str
    user: str
    with_picture: str
    text_only: str

    @classmethod
    def load(cls, name: str | Path = DEFAULT) -> Prompt:
        """A template that comes with CERS, by name, or a file of one's own.

        Raises:
            InputError: no such template, or one without its four sections or with unknown fields.
        """
        path = Path(name)
        if path.suffix != ".txt":
            try:
                path = resource(f"{FOLDER}/{name}.txt") if re.fullmatch(r"[\w-]+", str(name)) else path
            except CersError as error:
                raise InputError(f"There is no prompt template '{name}'. Give one of {', '.join(names())}, or a .txt file.") from error
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The prompt template '{path}' cannot be read. Give one of {', '.join(names())}, or a text file.") from error
        pieces = re.split(rf"^\[({'|'.join(_SECTIONS)})\]\s*\n", text, flags=re.M)
        found = {title: body.strip() for title, body in zip(pieces[1::2], pieces[2::2])}
        if missing := [s for s in _SECTIONS if not found.get(s)]:
            raise InputError(f"The prompt template '{path.name}' lacks the section [{missing[0]}]. It needs [{'], ['.join(_SECTIONS)}].")
        fields = {m["named"] or m["braced"] or "$" for m in string.Template.pattern.finditer(found["user"])}
        if fields - _FIELDS or "draft" not in fields:
            raise InputError(
                f"The section [user] of the prompt template '{path.name}' must hold $draft, and otherwise only "
                f"${', $'.join(sorted(_FIELDS - {'draft'}))}."
            )
        return cls(path.stem, f"{path.stem}+{hashlib.sha256(text.encode()).hexdigest()[:8]}", *(found[s] for s in _SECTIONS))

    def fill(self, case: Case, measured: Rationale, *, picture: bool) -> tuple[str, str]:
        """(system, user) text for one case."""
        # with no more digits than the sentences have, else the model would be tempted to print them
        said = {s.descriptor: s.value for s in measured.statements if s.descriptor in THRESHOLDS and s.value is not None}
        numbers = [
            f"- {meaning}: {THRESHOLDS[name].printed(said[name])}{' ' + unit if unit else ''}"
            for name, (unit, meaning) in DESCRIPTORS.items()
            if name in said
        ]
        return self.system, string.Template(self.user).substitute(
            about=about(case), picture=self.with_picture if picture else self.text_only, draft=measured.text, descriptors="\n".join(numbers)
        )


def about(case: Case) -> str:
    """What is said of the picture as such; a word that is on none of the lists is left out."""
    modality = (case.modality or "").strip().upper()
    site = (case.body_site or "").strip().lower().replace("_", " ")
    words = [
        w
        for w in (
            modality if modality in MODALITIES else "",
            site if site in BODY_SITES else "",
            case.plane if case.plane in PLANES else "",
        )
        if w
    ]
    return f"Image: {', '.join(words)}." if words else "Image: one slice."


def names() -> list[str]:
    """Names of the templates that come with CERS."""
    return sorted(p.stem for p in resource(FOLDER).glob("*.txt"))
