"""What each frame of a DICOM file says of itself: its place, its scale and what sets it apart from
its neighbours.

A single-frame file has one frame, described by its own elements; an enhanced multi-frame file
describes its frames in functional groups (PS3.3 C.7.6.16); RT doses, nuclear medicine and old
multi-frame files each have their own way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError
from limner.io.dicom._files import Header
from limner.io.dicom._pixels import PixelFormat
from limner.io.dicom._values import Rescale

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)
Array = NDArray[Any]

# Elements that tell frames at one position apart, most telling first, with the functional group
# that holds them in a multi-frame file ("" where they have none).
DISTINGUISHING = {
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "TriggerTime": "",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "EchoNumbers": "",
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "InversionTime": "",
    "FlipAngle": "",
    "FrameReferenceTime": "",
    "AcquisitionNumber": "",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "ConvolutionKernel": "",
    "ImageType": "",
    "FrameType": "MRImageFrameTypeSequence",
    "StackID": "FrameContentSequence",
    "AcquisitionTime": "",
    "ContentTime": "",
}
TEMPORAL = (
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "NominalPercentageOfCardiacPhase",
    "FrameReferenceTime",
    "AcquisitionTime",
    "ContentTime",
)
_VOLUME_MODALITIES = ("CT", "MR", "PT", "NM", "OPT", "RTDOSE")
_US_CENTIMETRES = 3  # code of PhysicalUnitsXDirection
_SPACING_KEYWORDS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

FRAME_TAGS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    *_SPACING_KEYWORDS,
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceLocation",
    "RescaleSlope",
    "RescaleIntercept",
    "SequenceOfUltrasoundRegions",
    "InstanceNumber",
    "SOPInstanceUID",
    *(k for k, group in DISTINGUISHING.items() if not group),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of one file.

    Attributes:
        header: of its file.
        format: its image pixel module.
        index: which frame of the file.
        position: LPS millimetres of its first pixel, None if unknown.
        orientation: 2×3, unit vectors along increasing column and along increasing row, or None.
        spacing: millimetres per step as (row, column), None if unknown.
        spacing_source: the element that gave `spacing`.
        spacing_error: what is wrong with a spacing that is stated and impossible, else empty.
        thickness: millimetres to the next slice as far as one frame knows, or None.
        rescale: of its values.
        number: InstanceNumber, then frame number: the order of acquisition.
        sources: the data sets that describe it, in order of precedence.
    """

    header: Header
    format: PixelFormat
    index: int
    position: Array | None
    orientation: Array | None
    spacing: tuple[float, float] | None
    spacing_source: str
    spacing_error: str
    thickness: float | None
    rescale: Rescale
    number: tuple[int, int]
    sources: tuple[Dataset, ...]

    @property
    def uid(self) -> str:
        """SOPInstanceUID of its file."""
        return self.header.instance_uid

    def place(self) -> tuple[Array, Array, tuple[float, float]] | None:
        """Position, orientation and spacing, None if one is unknown."""
        if self.position is None or self.orientation is None or self.spacing is None:
            return None
        return self.position, self.orientation, self.spacing

    def facts(self) -> dict[str, str]:
        """Values of the `DISTINGUISHING` elements that it has, as text."""
        found = {}
        for keyword, group in DISTINGUISHING.items():
            value = _find(self.sources, group, keyword)
            if value is not None:
                parts = value if _is_multi(value) else [value]
                found[keyword] = "\\".join(str(v) for v in parts)
        return found


def frames_of(header: Header, *, limit: int | None = None) -> list[Frame]:
    """The frames of a file in stored order: all, or the first `limit`.

    Raises:
        FormatError: no pixels, or an impossible value.
    """
    pixel_format = PixelFormat.from_header(header)
    dataset = header.dataset
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if pixel_format.num_frames == 1 and not groups:
        return [_frame(header, pixel_format, 0, [dataset], None)]
    _check_count(header, pixel_format.num_frames)
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or ())[:1]
    positions = _implied_positions(header, pixel_format.num_frames)
    frames = []
    for k in range(min(pixel_format.num_frames, limit or pixel_format.num_frames)):
        own = [groups[k]] if groups is not None and k < len(groups) else []
        position = None if positions is None else positions[k]
        frames.append(_frame(header, pixel_format, k, [*own, *shared, dataset], position))
    return frames


def _check_count(header: Header, num_frames: int) -> None:
    """A frame needs a byte at the very least, so a file bounds what it may claim."""
    assert header.pixels is not None
    if num_frames > max(header.pixels.length, 1) * 8:
        raise FormatError(
            f"{header.path}: claims {num_frames} frames in {header.pixels.length} bytes of pixels."
        )


def _frame(
    header: Header,
    pixel_format: PixelFormat,
    index: int,
    sources: list[Dataset],
    position: Array | None,
) -> Frame:
    """Read one frame's elements; `sources` in order of precedence, the data set itself last."""
    stated = _vector(_find(sources, "PlanePositionSequence", "ImagePositionPatient"), 3)
    if stated is None:
        stated = _vector(_find(sources, "PlanePositionVolumeSequence", "ImagePositionVolume"), 3)
    cosines = _vector(_find(sources, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    if cosines is None:
        group = "PlaneOrientationVolumeSequence"
        cosines = _vector(_find(sources, group, "ImageOrientationVolume"), 6)
    if position is None and (pixel_format.num_frames == 1 or len(sources) > 1):
        position = stated
    if cosines is None:
        cosines = _vector(
            _find(sources, "DetectorInformationSequence", "ImageOrientationPatient"), 6
        )
    spacing, source, spacing_error = _pixel_spacing(header, sources)
    between = _number(_find(sources, "PixelMeasuresSequence", "SpacingBetweenSlices"))
    thick = _number(_find(sources, "PixelMeasuresSequence", "SliceThickness"))
    thickness = next((abs(t) for t in (between, thick) if t), None)
    number = _number(_find(sources[-1:], "", "InstanceNumber"))
    return Frame(
        header=header,
        format=pixel_format,
        index=index,
        position=position,
        orientation=_unit_axes(header, cosines),
        spacing=spacing,
        spacing_source=source,
        spacing_error=spacing_error,
        thickness=thickness,
        rescale=_rescale(header, sources),
        number=(int(number or 0), index),
        sources=tuple(sources),
    )


def _find(sources: Sequence[Dataset], group: str, keyword: str) -> Any:
    """The first value of an element, in a functional group or directly in a data set."""
    for source in sources:
        if group:
            sequence = source.get(group)
            if sequence:
                value = sequence[0].get(keyword)
                if value is not None and value != "":
                    return value
        value = source.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value[0] if isinstance(value, (list, tuple)) or _is_multi(value) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None


def _is_multi(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes))


def _vector(value: Any, size: int) -> Array | None:
    if value is None or not _is_multi(value) or len(value) != size:
        return None
    try:
        vector = np.asarray([float(v) for v in value])
    except (TypeError, ValueError):
        return None
    return vector if np.isfinite(vector).all() else None


def _unit_axes(header: Header, cosines: Array | None) -> Array | None:
    """2×3 unit vectors of ImageOrientationPatient; None where they span no plane."""
    if cosines is None:
        return None
    axes = cosines.reshape(2, 3)
    sizes = np.linalg.norm(axes, axis=1)
    if min(sizes) < 0.5 or np.linalg.norm(np.cross(axes[0], axes[1])) < 0.5:
        logger.warning("%s: ignored an impossible ImageOrientationPatient", header.path)
        return None
    return np.asarray(axes / sizes[:, None])


def _pixel_spacing(
    header: Header, sources: list[Dataset]
) -> tuple[tuple[float, float] | None, str, str]:
    """(row, column) spacing in mm, the element that states it, and what is wrong with it."""
    for keyword in _SPACING_KEYWORDS:
        value = _find(sources, "PixelMeasuresSequence", keyword)
        if value is None:
            continue
        pair = _vector(value, 2)
        if pair is None:
            continue
        if pair.min() <= 0:
            wrong = f"{header.path}: {keyword} is {pair[0]:g}\\{pair[1]:g} mm; it must be above 0."
            return None, "", wrong
        return (float(pair[0]), float(pair[1])), keyword, ""
    region = _ultrasound_spacing(sources[-1])
    return (region, "SequenceOfUltrasoundRegions", "") if region else (None, "", "")


def _ultrasound_spacing(dataset: Dataset) -> tuple[float, float] | None:
    """Spacing of the only 2D region of an ultrasound image, where it is in centimetres."""
    regions = dataset.get("SequenceOfUltrasoundRegions") or ()
    flat = [r for r in regions if r.get("RegionSpatialFormat") == 1]
    if len(flat) != 1:
        return None
    units = (flat[0].get("PhysicalUnitsXDirection"), flat[0].get("PhysicalUnitsYDirection"))
    x, y = (_number(flat[0].get(k)) for k in ("PhysicalDeltaX", "PhysicalDeltaY"))
    if units != (_US_CENTIMETRES, _US_CENTIMETRES) or not x or not y:
        return None
    return abs(y) * 10.0, abs(x) * 10.0


def _rescale(header: Header, sources: list[Dataset]) -> Rescale:
    group = "PixelValueTransformationSequence"
    slope = _number(_find(sources, group, "RescaleSlope"))
    intercept = _number(_find(sources, group, "RescaleIntercept"))
    dose = _number(sources[-1].get("DoseGridScaling"))
    if dose:
        return Rescale(dose)
    if slope == 0:
        logger.warning("%s: ignored a rescale slope of 0", header.path)
        slope = None
    return Rescale(1.0 if slope is None else slope, intercept or 0.0)


def _implied_positions(header: Header, num_frames: int) -> list[Array] | None:
    """Positions that a multi-frame file without functional groups implies, or None.

    RT doses by GridFrameOffsetVector (PS3.3 C.8.8.3.2), nuclear medicine by the spacing between
    slices of its detector or reconstruction, old multi-frame files by SliceLocationVector or by the
    spacing alone.
    """
    dataset = header.dataset
    detectors = dataset.get("DetectorInformationSequence")
    place = dataset if not detectors or dataset.get("ImagePositionPatient") else detectors[0]
    origin = _vector(place.get("ImagePositionPatient"), 3)
    cosines = _vector(place.get("ImageOrientationPatient"), 6)
    if origin is None or cosines is None or dataset.get("PerFrameFunctionalGroupsSequence"):
        return None
    axes = _unit_axes(header, cosines)
    if axes is None:
        return None
    normal = np.cross(axes[0], axes[1])
    offsets = _slice_offsets(header, num_frames)
    return None if offsets is None else [origin + normal * d for d in offsets]


def _slice_offsets(header: Header, num_frames: int) -> Array | None:
    """Millimetres along the normal from the first frame to each frame."""
    dataset = header.dataset
    vector = _vector(dataset.get("GridFrameOffsetVector"), num_frames)
    if vector is None:
        vector = _vector(dataset.get("SliceLocationVector"), num_frames)
    if vector is not None:
        return np.asarray(vector - vector[0])
    pointer = str(dataset.get("FrameIncrementPointer") or "")
    is_time = "0018" in pointer and ("1063" in pointer or "1065" in pointer)
    is_tomographic = "TOMO" in header.text("ImageType").upper()
    modality = header.text("Modality")
    if is_time or modality not in _VOLUME_MODALITIES or (modality == "NM" and not is_tomographic):
        return None
    step = _number(dataset.get("SpacingBetweenSlices")) or _number(dataset.get("SliceThickness"))
    return None if not step else np.arange(num_frames) * step


def frame_time_ms(frames: Sequence[Frame]) -> float | None:
    """Milliseconds from frame to frame of a video; None where nothing tells.

    As stated, else the usual step of the trigger times within a heart beat, else the rate at which
    it is to be shown.
    """
    header = frames[0].header
    stated = as_number(header.text("FrameTime") or None)
    if stated:
        return stated
    times = [as_number(f.facts().get("TriggerTime")) for f in frames]
    known = [t for t in times if t is not None]
    if len(known) == len(times) > 1 and (step := float(np.median(np.diff(known)))) > 0:
        return step
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        if rate := as_number(header.text(keyword) or None):
            return 1000.0 / rate
    return None


def as_number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
