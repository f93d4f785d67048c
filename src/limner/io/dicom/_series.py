"""Stacks of one DICOM series: its frames as images, volumes and videos with their grids.

A series may hold more than one stack: localisers beside the slices, other image sizes, several time
points, echoes or b-values at each position. Stacks are separated here and never mixed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.geometry import Geometry
from limner.io.dicom._frames import DISTINGUISHING, TEMPORAL, Frame, as_number
from limner.io.image import Kind

logger = logging.getLogger(__name__)
Array = NDArray[Any]

GAP_TOLERANCE_MM = 0.01
GAP_TOLERANCE = 0.02  # of the median step
_SAME_POSITION = 0.01  # of the median step: closer slices are at one position
_LEAST_STEP_MM = 1e-4
_ORIENTATION_TOLERANCE = 2e-3  # difference of a direction cosine within one stack
_SPACING_TOLERANCE = 1e-3  # relative
_SLICED = ("CT", "MR", "PT", "OPT")


@dataclass(frozen=True, eq=False)
class Stack:
    """Frames that form one image.

    Attributes:
        frames: in order: by position, by time, or as stored.
        kind: what they form.
        note: what sets the stack apart from others of its series, "" if it is the only one.
        ambiguous: why these frames form no volume, "" if they do.
    """

    frames: tuple[Frame, ...]
    kind: Kind
    note: str = ""
    ambiguous: str = ""

    @property
    def first(self) -> Frame:
        """Its first frame."""
        return self.frames[0]

    def describe(self) -> str:
        """One line, such as ``"CT · 300 slices · 512×512 · Thorax 1.0 B70f"``."""
        header, count = self.first.header, len(self.frames)
        unit = {"image": "image", "volume": "slice", "video": "frame"}[self.kind]
        parts = [
            header.text("Modality"),
            f"{count} {unit}{'' if count == 1 else 's'}",
            f"{self.first.format.columns}×{self.first.format.rows}",
            header.text("SeriesDescription") or header.text("ProtocolName"),
            self.note,
        ]
        return " · ".join(" ".join(p.split())[:80] for p in parts if p)


def stacks_of(frames: Sequence[Frame]) -> list[Stack]:
    """All stacks of the frames of one series, in order of acquisition."""
    groups = _by_shape(_without_copies(frames))
    stacks: list[Stack] = []
    for group in groups:
        stacks += _stacks_of_group(sorted(group, key=lambda f: f.number))
    if len(groups) > 1:
        stacks = [s if s.note else replace(s, note=_role(s.first)) for s in stacks]
    return sorted(stacks, key=lambda s: min(f.number for f in s.frames))


def _without_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Drop frames met before: the same file, copied.

    Same SOPInstanceUID and same place; some anonymisers give all slices one UID.
    """
    seen: set[Any] = set()
    kept = []
    for frame in frames:
        place = None if frame.position is None else tuple(frame.position.tolist())
        key = (frame.uid or str(frame.header.path), frame.number, place)
        if key not in seen:
            seen.add(key)
            kept.append(frame)
    if len(kept) < len(frames):
        count = len(frames) - len(kept)
        logger.warning("Left out %d copies of files in %s", count, frames[0].header.path.parent)
    return kept


def _by_shape(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Groups of equal size, colour, role, orientation and spacing."""
    groups: list[tuple[Any, Frame, list[Frame]]] = []
    for frame in frames:
        f = frame.format
        # A video or multi-frame file without positions is an image of its own.
        own = f.num_frames > 1 and frame.position is None
        file = frame.header.path if own else None
        key = (f.rows, f.columns, f.samples, f.is_float, f.photometric, _is_localizer(frame), file)
        for known, model, members in groups:
            if known == key and _is_coplanar(model, frame):
                members.append(frame)
                break
        else:
            groups.append((key, frame, [frame]))
    return [members for _, _, members in groups]


def _is_localizer(frame: Frame) -> bool:
    return "LOCALIZER" in frame.header.text("ImageType").upper()


def _is_coplanar(a: Frame, b: Frame) -> bool:
    if (a.position is None) != (b.position is None) or (a.spacing is None) != (b.spacing is None):
        return False
    if (a.orientation is None) != (b.orientation is None):
        return False
    if (
        a.orientation is not None
        and b.orientation is not None
        and np.abs(a.orientation - b.orientation).max() > _ORIENTATION_TOLERANCE
    ):
        return False
    if a.spacing is not None and b.spacing is not None:
        return bool(np.allclose(a.spacing, b.spacing, rtol=_SPACING_TOLERANCE, atol=0))
    return True


def _stacks_of_group(frames: list[Frame]) -> list[Stack]:
    """Stacks of frames alike in size and orientation, given in order of acquisition."""
    first = frames[0]
    if len(frames) == 1:
        return [Stack((first,), "image")]
    if first.position is None or first.orientation is None:
        return _stacks_without_positions(frames)
    where = positions_along_normal(frames)
    ranks = _ranks(where)
    num_positions = int(ranks.max()) + 1
    if num_positions == len(frames):
        order = np.argsort(where)
        return [Stack(tuple(frames[k] for k in order), "volume")]
    if num_positions == 1:
        return [_in_time(frames)]
    return _split_by_elements(frames, ranks)


def _stacks_without_positions(frames: list[Frame]) -> list[Stack]:
    """Frames without position: a multi-frame file is in order, loose slices are ambiguous."""
    first = frames[0]
    is_sliced = first.header.text("Modality") in _SLICED
    if first.format.num_frames > 1:
        is_timed = first.header.text("FrameTime") or first.header.text("FrameTimeVector")
        return [Stack(tuple(frames), "volume" if is_sliced and not is_timed else "video")]
    if is_sliced:
        reason = "its files state no position (ImagePositionPatient, ImageOrientationPatient)"
        return [Stack(tuple(frames), "volume", ambiguous=reason)]
    return [
        Stack((frame,), "image", f"image {frame.number[0] or k + 1}")
        for k, frame in enumerate(frames)
    ]


def _in_time(frames: list[Frame]) -> Stack:
    """Frames at one position are a video, in the order of whatever clock tells them apart."""
    facts = [f.facts() for f in frames]
    for keyword in TEMPORAL:
        values = [as_number(f.get(keyword)) for f in facts]
        if None not in values and len(set(values)) == len(frames):
            order = np.argsort(np.asarray(values, dtype=float), kind="stable")
            return Stack(tuple(frames[k] for k in order), "video")
    return Stack(tuple(frames), "video")


def positions_along_normal(frames: Sequence[Frame]) -> Array:
    """Millimetres along the common normal of frames that have a position."""
    orientation = np.mean([f.orientation for f in frames if f.orientation is not None], axis=0)
    normal = np.cross(orientation[0], orientation[1])
    normal /= np.linalg.norm(normal)
    return np.asarray([f.position @ normal for f in frames if f.position is not None])


def _ranks(where: Array) -> Array:
    """Number of the position of each frame, counted from the lowest."""
    order = np.argsort(where, kind="stable")
    steps = np.diff(where[order])
    real = steps[steps > _LEAST_STEP_MM]
    limit = max(_LEAST_STEP_MM, _SAME_POSITION * float(np.median(real))) if real.size else np.inf
    ranks = np.empty(len(where), dtype=np.int64)
    ranks[order] = np.concatenate(([0], np.cumsum(steps > limit)))
    return ranks


def _split_by_elements(frames: list[Frame], ranks: Array) -> list[Stack]:
    """Tell several frames per position apart by the elements that differ between them."""
    facts = [f.facts() for f in frames]
    varying = [k for k in DISTINGUISHING if len({f.get(k) for f in facts}) > 1]
    pairs = itertools.combinations(varying, 2)
    options: list[tuple[str, ...]] = [*((k,) for k in varying), *pairs]
    num_positions = int(ranks.max()) + 1
    for keywords in options:
        stacks = _group_by_elements(frames, ranks, facts, keywords)
        if stacks and all(len(s) == num_positions for s in stacks.values()):
            return _name_stacks(stacks, keywords)
    repeats = _repeats(frames, ranks)
    if repeats is not None:
        count = len(repeats)
        return [
            Stack(s, "volume", f"repeat {k + 1} of {count} by InstanceNumber")
            for k, s in enumerate(repeats)
        ]
    for keyword in varying:  # stacks that cover different parts of the positions
        stacks = _group_by_elements(frames, ranks, facts, (keyword,))
        if stacks:
            return _name_stacks(stacks, (keyword,))
    reason = (
        f"its {len(frames)} frames lie at {num_positions} positions, some more than once, and no "
        f"element splits them into complete stacks (differing: {', '.join(varying) or 'none'})"
    )
    return [Stack(tuple(frames[k] for k in np.argsort(ranks, kind="stable")), "volume", "", reason)]


def _group_by_elements(
    frames: list[Frame], ranks: Array, facts: list[dict[str, str]], keywords: tuple[str, ...]
) -> dict[tuple[str, ...], tuple[Frame, ...]] | None:
    """One stack per value of the elements; None if one has two frames at a position or just one."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for k, fact in enumerate(facts):
        groups.setdefault(tuple(fact.get(name, "") for name in keywords), []).append(k)
    for members in groups.values():
        if len(set(ranks[members].tolist())) != len(members) or len(members) < 2:
            return None
    if len(groups) < 2:
        return None
    return {
        value: tuple(frames[k] for k in sorted(members, key=lambda k: int(ranks[k])))
        for value, members in groups.items()
    }


def _name_stacks(
    stacks: dict[tuple[str, ...], tuple[Frame, ...]], keywords: tuple[str, ...]
) -> list[Stack]:
    ordered = sorted(stacks.items(), key=lambda item: _natural(item[0]))
    return [Stack(frames, "volume", _note(keywords, value)) for value, frames in ordered]


def _repeats(frames: list[Frame], ranks: Array) -> list[tuple[Frame, ...]] | None:
    """Equally many frames at each position: the k-th acquired of each form stack k."""
    counts = np.bincount(ranks)
    if counts.min() != counts.max():
        return None
    places: list[list[Frame]] = [[] for _ in counts]
    for frame, rank in zip(frames, ranks, strict=True):
        places[int(rank)].append(frame)
    return [tuple(place[k] for place in places) for k in range(int(counts[0]))]


def _natural(value: tuple[str, ...]) -> tuple[tuple[float, str], ...]:
    numbers = (as_number(text) for text in value)
    return tuple(
        (np.inf if number is None else number, text)
        for number, text in zip(numbers, value, strict=True)
    )


def _note(keywords: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{k} {v or 'absent'}" for k, v in zip(keywords, values, strict=True))


def _role(frame: Frame) -> str:
    """What sets a group of slices apart from others of its series, in words."""
    if _is_localizer(frame):
        return "localizer"
    if frame.orientation is None:
        return ""
    normal = np.abs(np.cross(frame.orientation[0], frame.orientation[1]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())]


def geometry_of(stack: Stack, *, strict: bool) -> Geometry:
    """The grid of a stack.

    Raises:
        FormatError: in a volume slices are missing, doubled or out of line, and `strict`; or it
            states an impossible size.
    """
    first, count = stack.first, len(stack.frames)
    size = (first.format.rows, first.format.columns)
    shape = size if stack.kind == "image" else (count, *size)
    if stack.ambiguous:
        _raise_or_warn(stack, f"cannot be stacked: {stack.ambiguous}", strict=strict)
    placed = [f for f in stack.frames if f.position is not None and f.orientation is not None]
    row, column = first.spacing or (1.0, 1.0)
    axes = _default_axes() if first.orientation is None else first.orientation
    affine = np.eye(4)
    affine[:3, 2], affine[:3, 1] = axes[0] * column, axes[1] * row
    step = np.cross(axes[0], axes[1])
    step /= np.linalg.norm(step)
    affine[:3, 0] = step * (1.0 if stack.kind == "video" else first.thickness or 1.0)
    if first.position is not None and first.orientation is not None:
        affine[:3, 3] = first.position
    if stack.kind == "volume" and len(placed) == count > 1:
        affine[:3, 0] = _step(stack, step, strict=strict)
    geometry = Geometry(shape, affine, has_spacing=first.spacing is not None)
    if not strict:
        _warn_of_distances(stack, geometry)
    if not geometry.is_orthogonal:
        logger.warning(
            "%s: the slices are sheared (tilted gantry); the affine keeps the shear",
            first.header.path.parent,
        )
    return geometry


def _default_axes() -> Array:
    return np.asarray([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def _step(stack: Stack, normal: Array, *, strict: bool) -> Array:
    """The vector from slice to slice, after checking that it is the same everywhere."""
    points = np.asarray([f.position for f in stack.frames])
    mean = np.asarray((points[-1] - points[0]) / (len(points) - 1))
    along = points @ normal
    steps = np.diff(along)
    median = float(np.median(steps))
    tolerance = min(max(GAP_TOLERANCE_MM, GAP_TOLERANCE * median), 0.25 * abs(median))
    if median <= 0 or steps.min() <= _LEAST_STEP_MM:
        if not stack.ambiguous:
            _raise_or_warn(stack, "has several slices at one position", strict=strict)
        return mean if np.linalg.norm(mean) > 0 else normal
    wrong = np.flatnonzero(np.abs(steps - median) > tolerance)
    if wrong.size:
        _raise_or_warn(stack, _gap_text(steps, along, median, wrong), strict=strict)
    sideways = points - points[0] - np.outer(np.arange(len(points)), mean)
    sideways -= np.outer(sideways @ normal, normal)
    drift = np.linalg.norm(sideways, axis=1)
    limit = max(0.05, 0.1 * min(stack.first.spacing or (1.0, 1.0)))
    if drift.max() > limit and not wrong.size:
        k = int(drift.argmax())
        text = f"is out of line: slice {k} lies {drift[k]:.3g} mm beside the line of the others"
        _raise_or_warn(stack, text, strict=strict)
    return mean


def _gap_text(steps: Array, along: Array, median: float, wrong: Array) -> str:
    k = int(wrong[np.abs(steps[wrong] - median).argmax()])
    text = (
        f"is not evenly spaced: the step is {median:.4g} mm, but {steps[k]:.4g} mm between slices "
        f"{k} and {k + 1} (at {along[k]:.2f} and {along[k + 1]:.2f} mm)"
    )
    missing = round(float(steps[k] / median)) - 1
    if missing > 0 and abs(steps[k] / median - missing - 1) < 0.1:
        text += f", so {missing} slice{'s are' if missing > 1 else ' is'} missing there"
    if wrong.size > 1:
        text += f"; {wrong.size} places in all"
    return text


def is_even(stack: Stack, geometry: Geometry) -> bool:
    """Whether every slice lies where the affine puts it, to a tenth of a step."""
    off = _distances_off_grid(stack, geometry)
    if off is None:
        return stack.kind != "volume"
    return bool(off.max() < 0.1 * geometry.spacing[0])


def _distances_off_grid(stack: Stack, geometry: Geometry) -> Array | None:
    """Millimetres from where the affine puts each slice of a volume to where it says it is; None
    where slices state no position.
    """
    places = [f.position for f in stack.frames if f.position is not None]
    if stack.kind != "volume" or len(places) < len(stack.frames):
        return None
    index = np.zeros((len(places), 3))
    index[:, 0] = np.arange(len(places))
    return np.asarray(np.linalg.norm(geometry.index_to_world(index) - np.asarray(places), axis=1))


def _warn_of_distances(stack: Stack, geometry: Geometry) -> None:
    """Say how far slices lie beside the even grid that they are read on."""
    off = _distances_off_grid(stack, geometry)
    if off is not None and off.max() >= max(GAP_TOLERANCE_MM, GAP_TOLERANCE * geometry.spacing[0]):
        logger.warning(
            "%s: on the even stack slices lie up to %.3g mm beside their place (slice %d; %.3g mm "
            "on average). Masks in NIfTI, NRRD, MetaImage and npz are off by that; DICOM "
            "Segmentations are exact.",
            stack.first.header.path.parent,
            off.max(),
            int(off.argmax()),
            off.mean(),
        )


def _raise_or_warn(stack: Stack, text: str, *, strict: bool) -> None:
    header = stack.first.header
    name = f"The series {header.text('SeriesDescription') or header.text('SeriesInstanceUID')!s}"
    message = f"{name} in {header.path.parent} {text}."
    if strict:
        raise FormatError(
            f"{message} Find the missing files, or read it as an even stack with "
            "strict=False (--lenient)."
        )
    logger.warning("%s Read as an even stack on request.", message)
