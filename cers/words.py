"""Numbers with what is counted, for everyone who tells a person how many of something there are."""

from __future__ import annotations


def plural(number: int, noun: str, several: str | None = None) -> str:
    """The noun for a number: "case", "cases"; ``several``: where that is not the noun with an s."""
    return noun if number == 1 else several or noun + "s"


def counted(number: int, noun: str = "case", several: str | None = None) -> str:
    """A number and what is counted: "1 case", "1,204 cases"."""
    return f"{number:,} {plural(number, noun, several)}"


def were(number: int, noun: str = "case") -> str:
    """The beginning of a sentence on them: "1 case was", "3 cases were"."""
    return f"{counted(number, noun)} {plural(number, 'was', 'were')}"
