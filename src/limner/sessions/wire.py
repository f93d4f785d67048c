"""Wire forms of what a session answers: predictions, labels, cards and prompts as JSON values.

Server and client convert with the same functions, so what a remote session returns equals what the
session on the server returned, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import SessionError
from limner.geometry import Geometry
from limner.io.image import Image
from limner.io.labels import Labels
from limner.models import ModelCard
from limner.packed_arrays import pack, unpack
from limner.prompts.types import Box, from_json, to_json
from limner.sessions.answers.prediction import Prediction
from limner.sessions.answers.sparse_logits import SparseLogits
from limner.sessions.history.events import PropagationRequest
from limner.sessions.history.manifest import Options
from limner.sessions.history.prompt_entry import PromptEntry
from limner.sessions.protocol import Session

_FAST = 1  # level of compression: answers wait for it


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """A prediction with its logits, for `prediction_from_json`."""
    region = prediction.region
    edges = None if region.edges is None else [edge.tolist() for edge in region.edges]
    return {
        **_facts(prediction),
        "region": {
            "low": [int(a) for a in region.low],
            "size": list(region.grid.shape),
            "edges": edges,
            "grid": pack(region.grid, level=_FAST),
        },
    }


def prediction_from_json(value: dict[str, Any]) -> Prediction:
    """Inverse of `prediction_to_json`."""
    region = value["region"]
    grid = unpack(region["grid"], np.dtype(np.int16), region["size"])
    edges = None if region["edges"] is None else tuple(np.array(e) for e in region["edges"])
    logits = SparseLogits(tuple(value["shape"]), tuple(region["low"]), grid, edges)
    box = None if value["box"] is None else Box(*map(tuple, value["box"]))
    return Prediction(
        logits, value["score"], box, value["object_id"], value["frame"], value["known"]
    )


def changes_to_json(prediction: Prediction) -> dict[str, Any]:
    """What a prediction changes: the box, and the mask inside it as bytes 0 and 1, zlib, base64."""
    voxels = None
    if prediction.box is not None:
        low, high = (tuple(int(x) for x in c) for c in (prediction.box.low, prediction.box.high))
        voxels = pack((prediction.region.window(low, high) > 0).view(np.uint8), level=_FAST)
    return {**_facts(prediction), "voxels": voxels}


def _facts(prediction: Prediction) -> dict[str, Any]:
    box = prediction.box
    return {
        "object_id": prediction.object_id,
        "frame": prediction.frame,
        "score": float(prediction.score),
        "known": prediction.known,
        "shape": [int(n) for n in prediction.region.shape],
        "box": None if box is None else [[int(x) for x in box.low], [int(x) for x in box.high]],
    }


def voxels_to_json(image: Image) -> dict[str, Any]:
    """What is said of an image whose voxels are uploaded: all but the voxels."""
    return {
        "geometry": image.geometry.to_json(),
        "dtype": image.dtype.newbyteorder("<").str,
        "kind": image.kind,
        "num_channels": image.num_channels,
        "modality": image.modality,
        "name": "array" if image.path is None else image.path.name,
    }


def voxels_id(image: Image) -> str:
    """The id of an image that is uploaded as voxels: the same for the same pixels and grid."""
    facts = [image.pixel_hash(), image.kind, image.modality, image.geometry.to_json()]
    return "v-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:40]


def labels_to_json(labels: Labels) -> dict[str, Any]:
    """Objects with names and manifest; one label map where that says all, else one mask each, cut
    to its box: objects overlap, or have no pixel left.
    """
    result: dict[str, Any] = {
        "ids": list(labels.ids),
        "names": {str(i): n for i, n in labels.names.items()},
        "manifest": labels.manifest,
        "priority": list(labels.priority),
        "array": None,
        "masks": None,
    }
    array = np.asarray(labels)
    if labels.num_overlapping() == 0 and Labels(labels.geometry, array=array).ids == labels.ids:
        result["array"] = {"dtype": array.dtype.name, "voxels": pack(array, level=_FAST)}
    else:
        result["masks"] = {str(i): _mask_to_json(labels.mask(i)) for i in labels.ids}
    return result


def labels_from_json(value: dict[str, Any], geometry: Geometry) -> Labels:
    """Inverse of `labels_to_json` on the grid of the image."""
    names = {int(i): str(n) for i, n in value["names"].items()}
    array, masks = value["array"], value["masks"]
    if array is not None:
        dense = unpack(array["voxels"], np.dtype(array["dtype"]), geometry.shape)
        return Labels(geometry, array=dense, names=names, manifest=value["manifest"])
    dense_masks = {int(i): _mask_from_json(m, geometry.shape) for i, m in masks.items()}
    return Labels(
        geometry,
        masks=dense_masks,
        names=names,
        manifest=value["manifest"],
        priority=value["priority"],
    )


def _mask_to_json(mask: NDArray[np.bool_]) -> dict[str, Any]:
    region = SparseLogits.of_mask(mask)
    high = [a + n for a, n in zip(region.low, region.size, strict=True)]
    voxels = pack(np.packbits(region.inside), level=_FAST)
    return {"box": [[int(a) for a in region.low], [int(b) for b in high]], "bits": voxels}


def _mask_from_json(value: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    low, high = value["box"]
    size = [b - a for a, b in zip(low, high, strict=True)]
    count = int(np.prod(size))
    bits = unpack(value["bits"], np.dtype(np.uint8), (-(-count // 8),))
    whole = np.zeros(shape, dtype=np.bool_)
    inside = np.unpackbits(bits, count=count).view(np.bool_).reshape(size)
    whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = inside
    return whole


def card_to_json(card: ModelCard) -> dict[str, Any]:
    """A model card with all its fields."""
    return {
        **card.to_json(),
        "predicts_quality": card.predicts_quality,
        "mask_is_answer": card.mask_is_answer,
    }


def card_from_json(value: dict[str, Any]) -> ModelCard:
    """Inverse of `card_to_json`; fields of a newer server are left out."""
    window = {int(k): v if isinstance(v, int) else tuple(v) for k, v in value["window"].items()}
    spacing = value["spacing"]
    known = {k: v for k, v in value.items() if k in ModelCard.__dataclass_fields__}
    return ModelCard(
        **{
            **known,
            "ndim": tuple(value["ndim"]),
            "prompts": frozenset(value["prompts"]),
            "window": window,
            "labels": {int(k): v for k, v in value["labels"].items()},
            "spacing": None if spacing is None else tuple(spacing),
        }
    )


def entries_to_json(entries: Iterable[PromptEntry]) -> list[dict[str, Any]]:
    """Prompt entries, oldest first."""
    return [
        {
            "object_id": e.object_id,
            "frame": e.frame,
            "answered": e.answered,
            "prompt": to_json(e.prompt),
        }
        for e in entries
    ]


def entries_from_json(values: Iterable[dict[str, Any]]) -> tuple[PromptEntry, ...]:
    """Inverse of `entries_to_json`."""
    return tuple(
        PromptEntry(from_json(v["prompt"]), v["object_id"], v["frame"], v["answered"])
        for v in values
    )


def state_to_json(session: Session) -> dict[str, Any]:
    """What a session says of itself without predicting, but for its prompts."""
    carrier, requested = session.propagator_card, session.requested
    return {
        "card": card_to_json(session.card),
        "propagator_card": None if carrier is None else card_to_json(carrier),
        "options": session.options.to_json(),
        "num_frames": session.num_frames,
        "can_undo": session.can_undo,
        "can_redo": session.can_redo,
        "object_ids": list(session.object_ids),
        "names": {str(i): name for i, name in session.names.items()},
        "locked": list(session.locked),
        "priority": list(session.priority),
        "requested": None if requested is None else dict(vars(requested)),
    }


def options_from_json(value: dict[str, Any]) -> Options:
    """Inverse of ``options.to_json()``."""
    return Options.from_json(value)


def request_from_json(value: dict[str, Any] | None) -> PropagationRequest | None:
    """What `state_to_json` says under ``"requested"``.

    Raises:
        SessionError: it is none.
    """
    if value is None:
        return None
    try:
        return PropagationRequest(**value)
    except TypeError as error:
        raise SessionError(f"The answer holds no propagation request: {error}.") from error
