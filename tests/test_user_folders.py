"""Caches and data lie where each platform wants them; tested here for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner.checkpoints import store
from limner.errors import CheckpointError
from limner.runtime import cache_folder
from limner.user_folders import find_cache_home, find_data_home


@pytest.mark.parametrize(
    ("platform", "environment", "cache", "data"),
    [
        ("linux", {}, "/home/ada/.cache", "/home/ada/.local/share"),
        ("linux", {"XDG_CACHE_HOME": "/c", "XDG_DATA_HOME": "/d"}, "/c", "/d"),
        ("linux", {"XDG_CACHE_HOME": "c"}, "/home/ada/.cache", "/home/ada/.local/share"),
        ("freebsd14", {}, "/home/ada/.cache", "/home/ada/.local/share"),
        (
            "darwin",
            {},
            "/home/ada/Library/Caches",
            "/home/ada/Library/Application Support",
        ),
        ("darwin", {"XDG_CACHE_HOME": "/c"}, "/c", "/home/ada/Library/Application Support"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local", "/local"),
        ("win32", {"XDG_CACHE_HOME": "/c"}, "/home/ada/AppData/Local", "/home/ada/AppData/Local"),
    ],
)
def test_where_they_are(
    platform: str,
    environment: dict[str, str],
    cache: str,
    data: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert find_cache_home(platform, environment) == Path(cache)
    assert find_data_home(platform, environment) == Path(data)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    for name in ("LIMNER_CACHE", "LIMNER_WEIGHTS", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() is None
    with pytest.raises(CheckpointError, match="LIMNER_WEIGHTS"):
        store.weights_folder()
