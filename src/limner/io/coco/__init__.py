"""Labels as COCO JSON: run-length masks per object, one image per slice or frame.

Written files are ordinary COCO files (``images``, ``annotations``, ``categories``; compressed RLE)
that pycocotools reads. A ``limner`` block and ``object_id`` in each annotation give back exactly
the labels that were written: geometry, ids, names, overlaps.

Read are our own files, those of pycocotools and annotation tools (compressed and plain counts,
polygons), and lists of results. A polygon's corners are in pixels with the origin at the outer
corner of the first pixel; a pixel belongs if its centre is inside by the even-odd rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.atomic import atomic_bytes
from limner.errors import FormatError, GeometryError
from limner.geometry import Geometry
from limner.io.coco import masks
from limner.io.image import Image
from limner.io.labels import Labels
from limner.io.limits import check_allocation, physical_memory
from limner.io.raster.pixels import check_not_empty, fitted_geometry

Array = NDArray[Any]
Record = dict[str, Any]

NAME = "coco"

_KEYS = (b'"annotations"', b'"segmentation"', b'"images"', b'"categories"', b'"image_id"')
_JSON_GROWTH = 12  # bytes of memory per byte of JSON text, at most, measured
_UNNAMED = "object"  # the category of objects without a name
_MAX_OBJECT_ID = (1 << 31) - 1


def sniff(path: Path, head: bytes) -> bool:
    """Whether the file begins as a COCO JSON file."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] not in (b"{", b"["):
        return False
    return any(key in text for key in _KEYS) or (b'"info"' in text and path.suffix == ".json")


def write(path: Path, labels: Labels, *, like: Image | None = None) -> None:
    """Write labels as COCO JSON; overlaps are kept.

    Args:
        path: the file.
        labels: 2D, or 3D with one entry of ``images`` per slice or frame.
        like: the image they belong to, whose file name is recorded.
    """
    rows, columns = labels.geometry.shape[-2:]
    name = path.with_suffix(".png").name if like is None or like.path is None else like.path.name
    categories = sorted({labels.names.get(i, _UNNAMED) for i in labels.ids})
    number = {category: k for k, category in enumerate(categories, start=1)}
    images: list[Record] = []
    annotations: list[Record] = []
    for frame, objects in enumerate(_objects_by_slice(labels)):
        image = {"id": frame + 1, "width": columns, "height": rows, "file_name": name}
        if labels.geometry.ndim == 3:
            image["frame_index"] = frame
        images.append(image)
        for object_id, runs in objects:
            record = {
                "id": len(annotations) + 1,
                "image_id": frame + 1,
                "category_id": number[labels.names.get(object_id, _UNNAMED)],
                "segmentation": runs.to_rle(),
                "area": runs.area,
                "bbox": runs.bbox(),
                "iscrowd": 0,
                "object_id": object_id,
            }
            annotations.append(record)
    content = {
        "info": {"description": "Segmentation written by limner", "version": "1.0"},
        "limner": {
            "geometry": labels.geometry.to_json(),
            "object_ids": list(labels.ids),
            "names": {str(i): n for i, n in labels.names.items()},
        },
        "licenses": [],
        "images": images,
        "categories": [{"id": k, "name": n, "supercategory": ""} for n, k in number.items()],
        "annotations": annotations,
    }
    atomic_bytes(path, json.dumps(content).encode("utf-8"))


def read_labels(path: Path, *, like: Image | None = None) -> Labels:
    """Read the labels of one image, volume or video from a COCO file.

    Object ids are ``object_id`` or ``track_id`` where annotations have one (also among their
    ``attributes``), else the annotations' own ids if they are small, else they are numbered in
    order. Names are those of the categories.

    Args:
        path: the file.
        like: the image the labels belong to. Needed where the file describes several images that
            are not the frames of one; then the one with the file name of `like` is taken.

    Raises:
        FormatError: not a COCO file, malformed, or several images and no `like`.
        GeometryError: the labels have not the shape of `like`.
    """
    content = _parse(path)
    try:
        images, annotations = _select_images(content, like, path)
        geometry = _geometry(content, images, path)
        # The block names the objects of the whole file: it holds where the whole file was selected.
        block = content.get("limner") if geometry.shape == _stated_shape(content) else None
        names = {int(c["id"]): str(c.get("name", "")) for c in content.get("categories") or []}
        return _labels(
            path, fitted_geometry(geometry, like, path), images, annotations, names, block
        )
    except (FormatError, GeometryError, MemoryError):
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"{path}: malformed COCO file ({text}).") from error


def _objects_by_slice(labels: Labels) -> Iterator[list[tuple[int, masks.Runs]]]:
    """Per slice (one for a 2D image) the ids of the objects in it with their runs."""
    geometry = labels.geometry
    num_slices = geometry.shape[0] if geometry.ndim == 3 else 1
    if labels.num_overlapping() == 0:
        flat = np.asarray(labels.to_array()).reshape(num_slices, *geometry.shape[-2:])
        for mask in flat:
            yield masks.runs_of_labels(mask)
        return
    for k in range(num_slices):
        found = []
        for object_id in labels.ids:
            mask = labels.mask(object_id).reshape(num_slices, *geometry.shape[-2:])[k]
            found += [(object_id, r) for _, r in masks.runs_of_labels(mask.astype(np.uint8))]
        yield found


def _parse(path: Path) -> Record:
    check_not_empty(path)
    size = path.stat().st_size
    if size * _JSON_GROWTH > physical_memory():
        raise FormatError(
            f"{path}: {size / 2**30:.3g} GiB of JSON need more memory than this machine has; split "
            "the file by image."
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not readable as JSON ({error}).") from error
    if isinstance(content, list):  # pycocotools' results
        content = {"annotations": content}
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise FormatError(f"{path}: not a COCO file; it has no list 'annotations'.")
    return content


def _select_images(
    content: Record, like: Image | None, path: Path
) -> tuple[list[Record], list[Record]]:
    """The images that make up one image, in order, and their annotations."""
    annotations: list[Record] = content["annotations"]
    images: list[Record] = content.get("images") or _images_of_results(annotations)
    if not images:
        raise FormatError(f"{path}: the COCO file lists no images.")
    if len(images) > 1 and like is not None and like.path is not None:
        named = [i for i in images if Path(str(i.get("file_name", ""))).name == like.path.name]
        images = named or images
    if len(images) > 1:
        if not all("frame_index" in i for i in images):
            raise FormatError(
                f"{path}: the COCO file describes {len(images)} pictures; give the image whose "
                "labels are wanted (like=…), it is found by its file name."
            )
        images = sorted(images, key=lambda i: int(i["frame_index"]))
        if [int(i["frame_index"]) for i in images] != list(range(len(images))):
            raise FormatError(f"{path}: the frames are not numbered 0, 1, 2, … without gaps.")
    wanted = {i["id"] for i in images}
    return images, [a for a in annotations if a["image_id"] in wanted]


def _images_of_results(annotations: list[Record]) -> list[Record]:
    """Stand-ins for the images that a list of results does not describe."""
    images: dict[Any, Record] = {}
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        if not isinstance(segmentation, dict):
            raise ValueError("without 'images' every segmentation must be RLE, which has a size")
        rows, columns = segmentation["size"]
        images[annotation["image_id"]] = {
            "id": annotation["image_id"],
            "height": rows,
            "width": columns,
        }
    return list(images.values())


def _stated_shape(content: Record) -> tuple[int, ...] | None:
    block = content.get("limner")
    return tuple(block["geometry"]["shape"]) if isinstance(block, dict) else None


def _geometry(content: Record, images: list[Record], path: Path) -> Geometry:
    sizes = {(int(i["height"]), int(i["width"])) for i in images}
    if len(sizes) > 1:
        raise FormatError(f"{path}: the frames differ in size.")
    rows, columns = sizes.pop()
    if min(rows, columns) < 1:
        raise FormatError(f"{path}: an image of {rows}×{columns} pixels is not possible.")
    stacked = len(images) > 1 or "frame_index" in images[0]
    shape = (len(images), rows, columns) if stacked else (rows, columns)
    check_allocation(shape, 4, path)
    if _stated_shape(content) == shape:
        return Geometry.from_json(content["limner"]["geometry"])
    return Geometry.from_spacing(shape)


def _labels(
    path: Path,
    geometry: Geometry,
    images: list[Record],
    annotations: list[Record],
    categories: dict[int, str],
    block: Record | None,
) -> Labels:
    ids = _object_ids(annotations)
    flat, separate = _paint_all(path, geometry.shape[-2:], images, annotations, ids)

    def upright(slices: Array) -> Array:
        turned = slices.reshape(len(images), geometry.shape[-1], geometry.shape[-2])
        return np.ascontiguousarray(turned.swapaxes(1, 2)).reshape(geometry.shape)

    if block is None:
        known = set(ids)
        names: dict[int, str] = {}
        for object_id, annotation in zip(ids, annotations, strict=True):
            category = categories.get(annotation.get("category_id", 0), "")
            if category and category != _UNNAMED:
                names.setdefault(object_id, category)
    else:  # objects without a pixel leave no annotation; our own files name them
        known = {int(i) for i in block["object_ids"]}
        names = {int(k): str(v) for k, v in block["names"].items()}
    if separate is None and (block is None or known <= set(np.unique(flat).tolist())):
        return Labels(geometry, array=upright(flat), names=names)
    check_allocation((len(known), *flat.shape), 1, path)
    empty = np.zeros(flat.shape, dtype=bool)
    found = {i: flat == i for i in known} if separate is None else separate
    every = {i: upright(found.get(i, empty)) for i in known}
    return Labels(geometry, masks=every, names=names)


def _paint_all(
    path: Path,
    grid: tuple[int, ...],
    images: list[Record],
    annotations: list[Record],
    ids: list[int],
) -> tuple[Array, dict[int, Array] | None]:
    """Paint all annotations, column-major per plane as their runs are.

    Returns:
        A label map ``(plane, column * rows + row)`` and None; or, if objects overlap, a useless map
        and one mask of that shape per object.
    """
    rows, columns = grid
    place = {image["id"]: k for k, image in enumerate(images)}
    flat = np.zeros((len(images), rows * columns), dtype=np.uint32)
    separate: dict[int, Array] | None = None
    for object_id, annotation in zip(ids, annotations, strict=True):
        pixels = masks.pixels_of(annotation["segmentation"], rows, columns)
        k = place[annotation["image_id"]]
        if separate is None:
            below = flat[k, pixels]
            if not ((below != 0) & (below != object_id)).any():
                flat[k, pixels] = object_id
                continue
            check_allocation((len(set(ids)), *flat.shape), 1, path)
            separate = {i: flat == i for i in sorted(set(ids))}
        separate[object_id][k, pixels] = True
    return flat, separate


def _object_ids(annotations: list[Record]) -> list[int]:
    """One object per annotation: its tracked id, else its own id, else its place from 1."""
    tracked = [_tracked_id(a) for a in annotations]
    if annotations and all(t is not None for t in tracked):
        return [t for t in tracked if t is not None]
    own = [a.get("id") for a in annotations]
    if all(isinstance(i, int) and 1 <= i <= 0xFFFF for i in own) and len(set(own)) == len(own):
        return [int(i) for i in own if i is not None]
    return list(range(1, len(annotations) + 1))


def _tracked_id(annotation: Record) -> int | None:
    attributes = annotation.get("attributes")
    for source in (annotation, attributes if isinstance(attributes, dict) else {}):
        for key in ("object_id", "track_id", "instance_id"):
            value = source.get(key)
            if isinstance(value, int) and 1 <= value <= _MAX_OBJECT_ID:
                return value
    return None
