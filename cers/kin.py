"""What belongs together because it is kin of kin: groups of patients, volumes, files and near-duplicates."""

from __future__ import annotations

from collections.abc import Hashable


class Kin:
    """Disjoint sets of anything hashable; what was never joined is alone."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def root(self, member: Hashable) -> Hashable:
        """The member that stands for all of a set."""
        parent = self._parent
        while (above := parent.setdefault(member, member)) != member:
            parent[member] = parent[above]
            member = parent[member]
        return member

    def join(self, first: Hashable, second: Hashable) -> None:
        """Makes one set of two, for which that of the first stands."""
        root = self.root(first)
        self._parent[self.root(second)] = root
