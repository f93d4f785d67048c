"""NIfTI headers: pixel format and grid of a file, and a new header for one to be written.

nibabel parses the bytes; the rest is ours, because its own loading repairs a damaged header (a
spacing of 0 becomes 1) where a user has to know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io._grid import geometry_from_axes
from limner.io._inflate import GZIP_MAGIC, peek_gzip
from limner.io.image import ChannelKind, Image
from limner.io.nifti.forms import RAS_TO_LPS, qform_apart, ras_affine

Array = NDArray[Any]

_HEADER_BYTES = {348: 1, 540: 2}  # size of the header: NIfTI version
_MAGIC = {b"n+1\0": 1, b"ni1\0": 1, b"n+2\0": 2, b"ni2\0": 2}
_PAIRED = (b"ni1\0", b"ni2\0")
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
    128: "u1",  # RGB
    2304: "u1",  # RGBA
}
COLOURS = {128: 3, 2304: 4}
_REFUSED = {
    0: "no data type",
    1: "single bits",
    32: "complex numbers",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
}
_MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # by spatial unit: unknown, m, mm, µm
INTENT_LABEL = 1002
_MAX_NIFTI1_SIZE = 32767  # pixels per axis, the range of its 16-bit dim
_GRID_FIELDS = (
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NiftiHeader:
    """What the header says about the pixels.

    Attributes:
        dims: pixels per axis, fastest first, spatial and others.
        dtype: of one value, with byte order.
        colours: values per pixel of an RGB type, else 0.
        offset: byte at which the pixels begin.
        unit_mm: millimetres per spatial unit.
        paired: whether the pixels are in another file.
        is_label_map: whether the header says that the values are labels (intent code 1002).
    """

    dims: tuple[int, ...]
    dtype: np.dtype[Any]
    colours: int
    offset: int
    unit_mm: float
    paired: bool
    is_label_map: bool = False

    @property
    def channel_kind(self) -> ChannelKind | None:
        """What the axes beyond space are: the fourth is time; of a vector it is not said."""
        if self.colours:
            return "colour"
        return "time" if len(self.dims) > 3 and self.dims[3] > 1 else None


def magic_of(head: bytes) -> bytes:
    """The four letters of a NIfTI header, of either version and byte order; empty if it is none."""
    if 348 in _sizes(head):
        return head[344:348]
    return head[4:8] if 540 in _sizes(head) else b""


def is_header(head: bytes) -> bool:
    """Whether these first bytes of a file are a NIfTI header."""
    return magic_of(head) in _MAGIC


def _sizes(head: bytes) -> tuple[int, int]:
    return int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")


def read_header(path: Path) -> Any:
    """The raw header, unrepaired: nibabel's own loading turns a spacing of 0 into 1."""
    with path.open("rb") as file:
        head = file.read(540)
    if head.startswith(GZIP_MAGIC):
        head = peek_gzip(path, 540)
        if len(head) < 348:
            raise FormatError(f"{path} is cut off or damaged: its gzip data hold no whole header.")
    magic = magic_of(head)
    if 348 in _sizes(head) and len(head) < 348:
        raise FormatError(f"{path} is cut off: {len(head)} bytes of a header of 348.")
    if magic not in _MAGIC:
        if 348 in _sizes(head):
            raise FormatError(
                f"{path} is ANALYZE 7.5 or a damaged NIfTI file (magic {magic!r}): such a header "
                "does not say which side is left. Convert it to NIfTI with a tool that knows."
            )
        raise FormatError(
            f"{path} is not NIfTI: it begins with {head[:8]!r}, not with a header of 348 or 540 "
            "bytes."
        )
    size = 348 if _MAGIC[magic] == 1 else 540
    if len(head) < size:
        raise FormatError(f"{path} is cut off: {len(head)} bytes of a header of {size}.")
    order = "<" if int.from_bytes(head[:4], "little") == size else ">"
    return _header_class(_MAGIC[magic])(head[:size], endianness=order, check=False)


def _header_class(version: int) -> Any:
    from nibabel import nifti1, nifti2

    return nifti1.Nifti1Header if version == 1 else nifti2.Nifti2Header


def parse_header(header: Any, path: Path) -> NiftiHeader:
    """What a raw header says about the pixels.

    Raises:
        FormatError: it is damaged, or describes something that is no image.
    """
    ndim = int(header["dim"][0])
    if not 1 <= ndim <= 7:
        raise FormatError(f"{path}: its header counts {ndim} axes, not 1 to 7; it is damaged.")
    dims = tuple(int(n) for n in header["dim"][1 : ndim + 1])
    if 3000 <= int(header["intent_code"]) < 3100 or ndim < 2 or min(dims) < 1:
        shown = "×".join(str(n) for n in dims)
        raise FormatError(f"{path} holds {shown} values that are no image (a surface or matrix).")
    code = int(header["datatype"])
    if code not in _DTYPES:
        name = _REFUSED.get(code, "an unknown data type")
        raise FormatError(
            f"{path} holds {name} (NIfTI data type {code}); images are integers, floats of 32 or "
            "64 bits, or RGB. Convert it first (of complex data take the magnitude)."
        )
    offset = float(header["vox_offset"])
    paired = bytes(header["magic"].item()).ljust(4, b"\0")[:4] in _PAIRED
    least = 0 if paired else int(header["sizeof_hdr"])
    if not np.isfinite(offset) or offset != int(offset) or 0 != offset < least or offset < 0:
        raise FormatError(f"{path}: its pixels cannot begin at byte {offset:g}; it is damaged.")
    return NiftiHeader(
        dims=dims,
        dtype=np.dtype(_DTYPES[code]).newbyteorder(header.endianness),
        colours=COLOURS.get(code, 0),
        offset=int(offset) or (0 if paired else int(header["sizeof_hdr"]) + 4),
        unit_mm=_MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0),
        paired=paired,
        is_label_map=int(header["intent_code"]) == INTENT_LABEL,
    )


def geometry_of(header: Any, facts: NiftiHeader, path: Path, strict: bool) -> Geometry:
    """The grid, in LPS millimetres.

    ``pixdim`` has to be sound even where the sform overrules it: other programs measure with it.

    Raises:
        GeometryError: a spacing of 0 or NaN (unless not `strict`), or a singular affine.
    """
    sizes = facts.dims[:3]
    steps = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    for axis, size in enumerate(sizes):
        if size > 1 and not (np.isfinite(steps[axis]) and steps[axis] > 0):
            if strict:
                raise GeometryError(
                    f"{path}: the spacing (pixdim) of axis {'ijk'[axis]} is {steps[axis]:g}; it "
                    "must be above 0. Correct the header, or read it with strict=False (as 1)."
                )
            _log.warning("%s: spacing of axis %s is unknown; taken as 1.", path, "ijk"[axis])
    usable = np.where(np.isfinite(steps) & (steps > 0), steps, 1.0)
    affine, known = ras_affine(header, sizes, usable, path)
    affine[:3] *= facts.unit_mm
    vectors = (RAS_TO_LPS @ affine[:3, :3]).T
    geometry = geometry_from_axes(
        path, sizes, vectors, RAS_TO_LPS @ affine[:3, 3], has_spacing=known
    )
    apart = qform_apart(header, sizes, facts.unit_mm, geometry)
    if apart is not None:
        _log.warning(
            "%s: its qform and sform differ, by up to %.3g mm; the sform is used, as by nibabel "
            "and FSL. SimpleITK, 3D Slicer and ITK-SNAP use the %s.",
            path,
            apart.distance,
            apart.used_by_itk,
        )
    stated = usable[: len(sizes)][::-1] * facts.unit_mm
    if known and not np.allclose(stated, geometry.spacing, rtol=0.01):
        _log.warning(
            "%s: pixdim gives spacing %s, the affine %s; the affine is used.",
            path,
            stated.tolist(),
            geometry.spacing,
        )
    return geometry


def scaling_of(header: Any, path: Path) -> tuple[float, float]:
    """Slope and intercept that turn stored values into real ones; (1, 0) where there are none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0  # the standard: a slope of 0 means no rescale
    if not np.isfinite(intercept):
        raise FormatError(f"{path}: its intensities are rescaled by an intercept of {intercept}.")
    return slope, intercept


def metadata_of(header: Any, facts: NiftiHeader, geometry: Geometry) -> dict[str, Any]:
    """Facts as JSON values. Those of `_GRID_FIELDS` are what a mask repeats; where qform and sform
    differ, the affine of the qform and which of the two programs built on ITK use.
    """
    grid = {name: header[name].tolist() for name in _GRID_FIELDS}
    apart = qform_apart(header, facts.dims[:3], facts.unit_mm, geometry)
    second: dict[str, Any] = {}
    if apart is not None:
        second = {"qform_affine": apart.affine.tolist(), "used_by_itk": apart.used_by_itk}
    return {
        **second,
        "nifti_version": _HEADER_BYTES[int(header["sizeof_hdr"])],
        "stored_shape": list(facts.dims),
        "stored_type": str(facts.dtype),
        "is_label_map": facts.is_label_map,
        "nifti_grid": grid,
    }


def repeats_grid(geometry: Geometry, like: Image | None) -> bool:
    """Whether `like` is a NIfTI image on the same grid, whose header is repeated."""
    return like is not None and like.geometry == geometry and "nifti_grid" in like.metadata


def new_header(
    pixels: Array, geometry: Geometry, like: Image | None, num_channels: int | None
) -> Any:
    """A header for pixels in index order, channels last.

    Args:
        pixels: of a type that NIfTI holds.
        geometry: their grid.
        like: an image whose NIfTI header is repeated where it states the same grid.
        num_channels: None for grey.

    Raises:
        FormatError: NIfTI has no such pixel type.
    """
    known = like.metadata if like is not None and repeats_grid(geometry, like) else {}
    large = max(pixels.shape) > _MAX_NIFTI1_SIZE or known.get("nifti_version") == 2
    header = _header_class(2 if large else 1)()
    dims = list(geometry.shape[::-1])
    code = next((c for c, t in _DTYPES.items() if np.dtype(t) == pixels.dtype), None)
    if code is None:
        raise FormatError(f"NIfTI does not hold {pixels.dtype}; convert the image to float32.")
    if num_channels is not None:
        colour = [c for c, n in COLOURS.items() if n == num_channels]
        if colour and pixels.dtype == np.uint8:
            code = colour[0]
        else:
            dims = [*dims, *[1] * (3 - geometry.ndim), num_channels]
    header["datatype"] = code
    header["bitpix"] = pixels.dtype.itemsize * 8 * COLOURS.get(code, 1)
    header["dim"][:] = 1
    header["dim"][0] = len(dims)
    header["dim"][1 : len(dims) + 1] = dims
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    grid: Mapping[str, Any] | None = known.get("nifti_grid")
    sound = grid is not None and all(
        p and np.isfinite(p) for p in grid["pixdim"][1 : 1 + len(dims)]
    )
    if grid is None or not sound:
        _set_grid(header, geometry)
    else:
        for name, value in grid.items():
            header[name] = value
    return header


def _set_grid(header: Any, geometry: Geometry) -> None:
    affine = np.eye(4)
    affine[:3, :3] = RAS_TO_LPS @ geometry.affine[:3, 2::-1]
    affine[:3, 3] = RAS_TO_LPS @ geometry.affine[:3, 3]
    header.set_sform(affine, code="scanner")
    if geometry.is_orthogonal:
        header.set_qform(affine, code="scanner")
    else:  # a quaternion cannot hold shear
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
        header["qform_code"] = 0
    header.set_xyzt_units("mm" if geometry.has_spacing else "unknown")
