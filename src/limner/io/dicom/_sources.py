"""The DICOM files behind an image, for what is written beside them: segmentations and contours must
repeat their patient, study and frame of reference and name the very instances.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limner.errors import FormatError
from limner.io.dicom._files import Header, read_header
from limner.io.image import Image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

MANUFACTURER = "limner"
_ALTERNATIVES = "write .nii.gz, .nrrd, .mha or .npz instead"
_SHARED_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_DATE = re.compile(r"(\d{4})[.\-/]?(0[1-9]|1[0-2])[.\-/]?(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3]):?(?:([0-5]\d)(?::?([0-5]\d|60)(\.\d{1,6})?)?)?")
_FORMS = {  # groups of a match, joined, are the value as the standard has it
    "PatientBirthDate": _DATE,
    "StudyDate": _DATE,
    "StudyTime": _TIME,
    "PatientSex": re.compile("([MFO])"),
}
_CLASS_OF_MODALITY = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def source_datasets(like: Image | None, *, purpose: str) -> list[Dataset]:
    """The data sets of the files of an image without their pixels, each file once, in slice order.

    Elements that every DICOM object has to repeat but anonymisers remove are put in empty.

    Args:
        like: an image read from DICOM files that are still there.
        purpose: what is to be written, such as ``"a DICOM Segmentation"``.

    Raises:
        FormatError: the image did not come from DICOM.
    """
    origins = {} if like is None else like.metadata.get("sources", {})
    files = list(dict.fromkeys(origins.get("files", ())))
    if like is None or like.format != "dicom" or not files:
        origin = "no image is given" if like is None else f"the image is {like.path or 'an array'}"
        raise FormatError(
            f"{purpose.capitalize()} needs the DICOM files of the image (like=) and {origin}; "
            f"{_ALTERNATIVES}."
        )
    headers = [read_header(Path(file)) for file in files]
    seed = headers[0].text("SeriesInstanceUID") or headers[0].instance_uid
    emptied: set[str] = set()
    for header in headers:
        _complete(header, seed)
        emptied |= _repair_values(header)
        if "ImagePositionPatient" in header.dataset and not header.text("SliceThickness"):
            header.dataset.SliceThickness = f"{np.linalg.norm(like.affine[:3, 0]):.8g}"
    if emptied:
        logger.warning(
            "%s: left empty in what is written, for its value there has no valid form: %s",
            headers[0].path.parent,
            ", ".join(sorted(emptied)),
        )
    return [header.dataset for header in headers]


def _complete(header: Header, seed: str) -> None:
    """Fill in what an anonymiser removed and every derived object must repeat.

    UIDs that are missing are made from `seed`, a UID of the first file, so that the slices of one
    image agree and two exports do, too.
    """
    from pydicom.uid import generate_uid

    dataset = header.dataset
    for keyword in _SHARED_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if not header.instance_uid:
        raise FormatError(f"{header.path} has no SOPInstanceUID, so nothing can refer to it.")
    modality = header.text("Modality")
    dataset.SOPInstanceUID = header.instance_uid
    dataset.SOPClassUID = header.sop_class or _CLASS_OF_MODALITY.get(modality, _SECONDARY_CAPTURE)
    needed = ["StudyInstanceUID", "SeriesInstanceUID"]
    if "ImagePositionPatient" in dataset:
        needed.append("FrameOfReferenceUID")
    for keyword in needed:
        if not header.text(keyword):
            setattr(dataset, keyword, generate_uid(entropy_srcs=[keyword, seed]))


def _repair_values(header: Header) -> set[str]:
    """Bring dates, times and sex into their form, which anonymisers and old devices do not keep to.

    Returns:
        Keywords of what has no such form and was emptied (the standard allows it for all of them).
    """
    emptied = set()
    for keyword, form in _FORMS.items():
        text = header.text(keyword)
        found = form.fullmatch(text.upper())
        kept = "" if found is None else "".join(part or "" for part in found.groups())
        if text and not kept:
            emptied.add(keyword)
        if text != kept:
            setattr(header.dataset, keyword, kept)
    for keyword in ("PatientName", "ReferringPhysicianName"):
        if header.dataset[keyword].VM > 1:  # one name is allowed, and several are no name
            setattr(header.dataset, keyword, str(header.dataset[keyword].value[0]))
    return emptied


def check_frame_of_reference(
    path: Path, stated: Collection[str], named: Collection[str], like: Image, *, any_frame: bool
) -> None:
    """Refuse what lies in another patient coordinate system than the image.

    Args:
        path: of the segmentation or structure set.
        stated: its FrameOfReferenceUIDs.
        named: UIDs of the series and instances that it says it was made on.
        like: the image; nothing is compared where it has no frame of reference.
        any_frame: only warn.

    Raises:
        FormatError: another frame of reference, and none of the image's instances is named.
    """
    sources = like.metadata.get("sources", {})
    own = sources.get("frame_of_reference_uid", "")
    if not own or not any(stated) or own in stated:
        return
    known = {sources.get("series_instance_uid", ""), *sources.get("sop_instance_uids", ())}
    problem = (
        f"{path} lies in another frame of reference than {like.path} (FrameOfReferenceUID "
        f"{', '.join(sorted(filter(None, stated)))}; the image has {own})"
    )
    if any_frame or known & set(named):
        logger.warning("%s; positions were taken as if they were the same.", problem)
        return
    raise FormatError(
        f"{problem}, so the same numbers mean different places. Name the image it was drawn on, "
        "or, if both are known to be aligned, pass any_frame=True (--any-frame)."
    )


def software_version() -> str:
    """Version of limner that goes into what it writes."""
    from importlib.metadata import version

    return version("limner")


def model_name(manifest: object) -> str:
    """The model that a manifest names, "" if it names none."""
    model = manifest.get("model") if isinstance(manifest, Mapping) else None
    name = model.get("name") if isinstance(model, Mapping) else model
    return str(name) if name else ""


def check_same_grid(shape: Sequence[int], like: Image, path: Path) -> None:
    """Refuse labels of another shape than the image."""
    if tuple(shape) != like.geometry.shape:
        raise FormatError(
            f"{path}: labels of shape {tuple(shape)} do not fit the image of shape "
            f"{like.geometry.shape}."
        )
