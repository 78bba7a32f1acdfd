"""The knowledge pool module where two things happen at once, or elsewhere than it thinks."""

from __future__ import annotations

import pytest
from poolroom import pool_folder, user  # noqa: F401 - fixtures


@pytest.mark.parametrize("typed", ["pool", "~/pool", "./pool"])
def test_a_pool_given_by_a_short_path_is_the_same_everywhere(user, pool_folder, monkeypatch, typed):
    """A training works in a folder of its own, and the application may be started in another one next time."""
    monkeypatch.chdir(pool_folder.parent)
    monkeypatch.setenv("HOME", str(pool_folder.parent))
    monkeypatch.setenv("USERPROFILE", str(pool_folder.parent))
    user.choose(typed)
    assert len(user.ids()) == 5, user.ui.statusLabel.text
    assert user.control.training.form.settings()["data"] == str(pool_folder)
    assert user.host.slicer.util.settingsValue("CERS/PoolFolder", "") == str(pool_folder)
    user.ui.reloadButton.click()
    user.settle()
    user.control.enter()
    user.settle()
    assert len(user.ids()) == 5 and user.ui.poolPath.currentPath in (typed, str(pool_folder))
