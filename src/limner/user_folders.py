"""Folders of the user for caches and data, by the rules of each platform."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# By platform: variable that names the folder, and where it is below home without one.
_CACHE = {
    "win32": ("LOCALAPPDATA", "AppData/Local"),
    "darwin": ("XDG_CACHE_HOME", "Library/Caches"),
    "": ("XDG_CACHE_HOME", ".cache"),
}
_DATA = {
    "win32": ("LOCALAPPDATA", "AppData/Local"),
    "darwin": ("XDG_DATA_HOME", "Library/Application Support"),
    "": ("XDG_DATA_HOME", ".local/share"),
}


def find_cache_home(
    platform: str = sys.platform, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Find the folder for what can be made again; None for a user without a home.

    ``XDG_CACHE_HOME`` or ``~/.cache``; on macOS ``~/Library/Caches``; on Windows ``LOCALAPPDATA``.
    """
    return _find(_CACHE, platform, environment)


def find_data_home(
    platform: str = sys.platform, environment: Mapping[str, str] = os.environ
) -> Path | None:
    """Find the folder for what is kept; None for a user without a home.

    ``XDG_DATA_HOME`` or ``~/.local/share``; on macOS ``~/Library/Application Support``; on Windows
    ``LOCALAPPDATA``.
    """
    return _find(_DATA, platform, environment)


def _find(
    table: Mapping[str, tuple[str, str]], platform: str, environment: Mapping[str, str]
) -> Path | None:
    variable, below_home = table.get(platform, table[""])
    named = Path(environment.get(variable, ""))
    if named.is_absolute():  # the XDG rule: relative ones are ignored
        return named
    try:
        return Path.home() / below_home
    except RuntimeError:
        return None
