"""Coded names for DICOM: what a user calls an object, as SNOMED CT category, type and side.

The codes are those of pydicom's copy of the DICOM context groups for segmented properties (PS3.16
CID 7191 to 7197), found by name. A name that is not among them is coded as plain tissue; the
user's own words stay in the label either way, shortened to what one may hold, and then in full in
the description beside it.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

# Context group of types, and the category (CID 7150) that they belong to; first match wins.
_GROUPS = (
    ("cid7192", "AnatomicalStructure"),
    ("cid7194", "MorphologicallyAbnormalStructure"),
    ("cid7191", "Tissue"),
    ("cid7197", "BodySubstance"),
    ("cid7193", "PhysicalObject"),
)
_SPELLINGS = {
    "oesophagus": "esophagus",
    "tumour": "neoplasm",
    "tumor": "neoplasm",
    "gtv": "neoplasm",
    "cancer": "neoplasm",
    "oedema": "edema",
    "haemorrhage": "hemorrhage",
    "haematoma": "hematoma",
    "grey": "gray",
    "colour": "color",
    "kidneys": "kidney",
    "lungs": "lung",
    "vertebrae": "vertebra",
    "brainstem": "brain stem",
    "gall bladder": "gallbladder",
    "urinary bladder": "bladder",
    "thyroid gland": "thyroid",
    "small bowel": "small intestine",
    "large bowel": "large intestine",
    "ivc": "inferior vena cava",
    "svc": "superior vena cava",
    "lv": "left ventricle",
    "rv": "right ventricle",
    "la": "left atrium",
    "ra": "right atrium",
    "wm": "white matter",
    "gm": "gray matter",
    "csf": "cerebrospinal fluid",
    "fat": "adipose tissue",
    "vessel": "blood vessel",
    "vessels": "blood vessel",
}
_FILLER = frozenset(("the", "of", "a", "an", "structure", "mask", "segmentation", "roi", "mass"))
_SIDES = {
    "left": "Left",
    "right": "Right",
    "l": "Left",
    "r": "Right",
    "lt": "Left",
    "rt": "Right",
    "bilateral": "RightAndLeft",
    "both": "RightAndLeft",
}
# Characters of a DICOM LO, 64, less the blank that pads an odd number of bytes: readers count it.
_MAX_LABEL = 63
_MAX_DESCRIPTION = 1024  # characters of a DICOM ST
_TAIL = 20  # characters kept of the end of a long name, where names of a series tend to differ
_GOLDEN_RATIO = 0.61803398875  # of the hue circle: neighbouring ids get distant colours


@dataclass(frozen=True)
class CodedName:
    """A name in codes.

    Attributes:
        category: such as SCT "Anatomical Structure".
        type: such as SCT "Kidney".
        side: SCT "Left", "Right" or "Right and left", or None.
    """

    category: Code
    type: Code
    side: Code | None = None


def coded_name(name: str) -> CodedName:
    """The codes of a name such as ``"left kidney"``, ``"kidney_left"`` or ``"GTV_Mass"``."""
    from pydicom.sr.codedict import codes

    words = _words(name)
    found = _lookup(words)
    if found is not None:
        return CodedName(*found)
    sides = [_SIDES[w] for w in words if w in _SIDES]
    found = _lookup([w for w in words if w not in _SIDES])
    side = getattr(codes.SCT, sides[0]) if len(set(sides)) == 1 else None
    if found is not None:
        return CodedName(*found, side)
    tissue = getattr(codes.cid7150, "Tissue")  # noqa: B009 (no stubs for the attribute)
    return CodedName(tissue, tissue, side)


def label_of(name: str) -> str:
    """A name as a DICOM LO may hold it: one line, no backslash, cut in the middle if too long.

    See `description_of` for what is lost.
    """
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    plain = plain.replace("\\", "/")
    if len(plain) <= _MAX_LABEL:
        return plain
    return f"{plain[: _MAX_LABEL - _TAIL - 3]}...{plain[-_TAIL:]}"


def description_of(name: str) -> str | None:
    """The name as a DICOM ST may hold it, None where the label says it all."""
    return None if label_of(name) == name else name[:_MAX_DESCRIPTION]


def name_of(label: str, description: str) -> str:
    """The name that was written as a label and a description; the label if they are unrelated."""
    return description if description and label_of(description) == label else label


def display_colour(object_id: int) -> tuple[int, int, int]:
    """A colour for an object, RGB 0…255, the same for the same id everywhere."""
    red, green, blue = colorsys.hsv_to_rgb(object_id * _GOLDEN_RATIO % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def _words(name: str) -> list[str]:
    """Lower-case words of any spelling: spaces, underscores, camel case, British or American."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    text = " ".join(re.findall(r"[a-z0-9]+", spaced.lower()))
    for ours, theirs in _SPELLINGS.items():
        text = re.sub(rf"\b{ours}\b", theirs, text)
    return text.split()


def _lookup(words: list[str]) -> tuple[Code, Code] | None:
    plain = [w for w in words if w not in _FILLER]
    for candidate in (words, plain, plain[::-1], _singular(plain)):
        found = _keywords().get("".join(candidate))
        if found is not None:
            return found
    return None


def _singular(words: list[str]) -> list[str]:
    return [*words[:-1], words[-1].removesuffix("s")] if words else words


@cache
def _keywords() -> dict[str, tuple[Any, Any]]:
    """(category, type) of every keyword of the groups, in lower case."""
    from pydicom.sr.codedict import codes

    table: dict[str, tuple[Any, Any]] = {}
    for group, category in _GROUPS:
        concepts = getattr(codes, group)
        for keyword in concepts.dir():
            pair = (getattr(codes.cid7150, category), getattr(concepts, keyword))
            table.setdefault(keyword.lower(), pair)
    return table
