"""Search for the files that a segmentation or structure set refers to, by UID, without parsing the
others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path

from limner.errors import FormatError
from limner.io._inflate import GZIP_MAGIC, peek_gzip
from limner.io.dicom._files import (
    DEFLATED,
    MAX_FOLDER_DEPTH,
    MAX_FOLDER_FILES,
    begins_as_dicom,
    read_header,
    walk,
)

logger = logging.getLogger(__name__)

_HEAD_BYTES = 1 << 14  # hold the UIDs of instance and series in all but the oddest files
_ANNOUNCED_FROM = 1000  # files that are looked at; more take a noticeable time
_UID = re.compile(rb"[0-9]+(?:\.[0-9]+)+")


def find_files_by_uid(folder: Path, uids: Collection[str]) -> list[Path]:
    """DICOM files below a folder that have, or whose series has, one of some UIDs.

    The folder's own files are looked at first, the folders in it only where those are not all.
    Only files whose first bytes hold such a UID are parsed.

    Args:
        folder: links to other folders in it are not followed.
        uids: of series, instances or both.
    """
    wanted = frozenset(uids)
    found: list[Path] = []
    seen: set[str] = set()
    for depth in (0, MAX_FOLDER_DEPTH):
        own = set(found)
        for number, path in enumerate(walk(folder, depth)):
            if number == _ANNOUNCED_FROM:
                logger.warning(
                    "Looking through the files below %s for the image that is referred to; naming "
                    "it with like= (--like) spares that.",
                    folder,
                )
            if number >= MAX_FOLDER_FILES:
                logger.warning("Stopped after %d files below %s.", number, folder)
                break
            if path not in own and (named := _uids_of(path, wanted)):
                found.append(path)
                seen |= named
        if wanted <= seen:
            break
    return found


def _uids_of(path: Path, wanted: Collection[str]) -> set[str]:
    """Which of some UIDs are a file's own instance and series."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if head.startswith(GZIP_MAGIC):
            head = peek_gzip(path, _HEAD_BYTES)
        if not begins_as_dicom(head):
            return set()
        packed = DEFLATED.encode() in head[:1024]
        if not packed and not any(uid.decode() in wanted for uid in _UID.findall(head)):
            return set()
        # Segmentations, reports and plans hold the same UIDs, but as those of others.
        header = read_header(path, ["SOPInstanceUID", "SeriesInstanceUID"])
    except (OSError, FormatError):
        return set()
    return {header.instance_uid, header.text("SeriesInstanceUID")}.intersection(wanted)
