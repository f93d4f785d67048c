"""The manifest: how a mask was made; written beside every export and at the head of a journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from limner._version import __version__
from limner.adapters.default_window import ROBUST, WindowSource
from limner.errors import SessionError
from limner.io.image import Image
from limner.io.overlaps import RULE
from limner.models import ModelCard
from limner.prompts.types import to_json

if TYPE_CHECKING:
    from limner.sessions.history.prompt_entry import PromptEntry


@dataclass(frozen=True)
class Options:
    """How a session looks at its image.

    Attributes:
        zoom: look twice (whole image, then a window around the object).
        window: intensities for black and white, or None for robust limits of the image.
        window_source: whose choice it is; see `limner.adapters.default_window`.
        weights: path of the weights file that was given, or None.
        device: as given.
        exact: compute in float32.
        keep_embeddings: keep encoded pictures on disk; answers do not depend on it.
        propagator_weights: path of the weights file that was given for the propagator, or None.
        propagator_zoom: whether the propagator looks twice; None where there is none.
        keep_masks: masks that are given stand, but for what later marks change near them.
    """

    zoom: bool
    window: tuple[float, float] | None = None
    weights: str | None = None
    device: str = "auto"
    exact: bool = False
    keep_embeddings: bool = False
    propagator_weights: str | None = None
    propagator_zoom: bool | None = None
    keep_masks: bool = False
    window_source: WindowSource | None = None

    @property
    def window_requested(self) -> str | tuple[float, float] | None:
        """The ``window=`` with which another session looks at the same image in the same way."""
        return ROBUST if self.window_source == "robust" else self.window if self.is_given else None

    @property
    def is_given(self) -> bool:
        """Whether the user named the window, as in journals that do not say whose it is."""
        return self.window is not None and self.window_source in ("given", None)

    @property
    def zoom_of_carrier(self) -> bool:
        """Whether what carries masks to other frames looks twice: propagator or model."""
        return self.zoom if self.propagator_zoom is None else self.propagator_zoom

    def to_json(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {
            "zoom": self.zoom,
            "window": None if self.window is None else list(self.window),
            "weights": self.weights,
            "device": self.device,
            "exact": self.exact,
            "keep_embeddings": self.keep_embeddings,
            "propagator_weights": self.propagator_weights,
            "propagator_zoom": self.propagator_zoom,
            "keep_masks": self.keep_masks,
            "window_source": self.window_source,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Options:
        """Inverse of `to_json`."""
        window = value["window"]
        pair = None if window is None else (float(window[0]), float(window[1]))
        newer = {
            f.name: value.get(f.name, f.default) for f in fields(cls)[4:]
        }  # than some journals
        return cls(value["zoom"], pair, value["weights"], value["device"], **newer)


# What a header has to say for a session to go on: by part, the kinds of its values.
_Kinds: TypeAlias = tuple[type, ...]
_TEXT: _Kinds = (str,)
_SWITCH: _Kinds = (bool,)
_NUMBER: _Kinds = (int, float)
_KINDS: dict[str, dict[str, _Kinds]] = {
    "image": {"path": (str, NoneType), "read_options": (dict,), "pixel_sha256": _TEXT},
    "image.read_options": {
        "series": (str, int, NoneType),
        "channel": (int, NoneType),
        "strict": _SWITCH,
        "axis": (int,),
    },
    "model": {"name": _TEXT, "weights_sha256": (str, NoneType)},
    "propagator": {"name": _TEXT, "weights_sha256": (str, NoneType)},
    "options": {
        "zoom": (bool, NoneType),
        "window": (list, NoneType),
        "weights": (str, NoneType),
        "device": _TEXT,
        "exact": _SWITCH,
        "keep_embeddings": _SWITCH,
        "propagator_weights": (str, NoneType),
        "propagator_zoom": (bool, NoneType),
        "keep_masks": _SWITCH,
    },
}
_NEEDED = {"path", "read_options", "pixel_sha256", "name", "weights_sha256", "zoom", "window"}
_NEEDED |= {"weights", "device"}


def check_header(facts: Mapping[str, Any], path: Path) -> None:
    """Refuse the header of a journal that says other things than `header` writes.

    Raises:
        SessionError: a fact is missing or of another kind; the message names it.
    """
    for part, kinds in _KINDS.items():
        section: Any = facts
        for name in part.split("."):
            section = section.get(name) if isinstance(section, Mapping) else None
        if section is None and part == "propagator":
            continue
        if not isinstance(section, Mapping):
            raise SessionError(f"The journal {path} is damaged: its header has no {part}.")
        wrong = [k for k, kind in kinds.items() if k in section and type(section[k]) not in kind]
        wrong += [k for k in kinds if k in _NEEDED and k not in section]
        window = section.get("window") if part == "options" else None
        if isinstance(window, list) and [type(x) in _NUMBER for x in window] != [True, True]:
            wrong.append("window")
        if wrong:
            given = section.get(wrong[0], "missing")
            raise SessionError(
                f"The journal {path} is damaged: in its header {part}.{wrong[0]} is {given!r:.60}."
            )


def header(
    image: Image, card: ModelCard, options: Options, propagator: ModelCard | None = None
) -> dict[str, Any]:
    """What an answer depends on besides the prompts. `propagator`: None where the model carries."""
    return {
        "limner": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "image": {
            "path": None if image.path is None else str(image.path.resolve()),
            "read_options": {k: _plain(v) for k, v in image.read_options.items()},
            "kind": image.kind,
            "modality": image.modality,
            "geometry": image.geometry.to_json(),
            "pixel_sha256": image.pixel_hash(),
        },
        "model": card.to_json(),
        "propagator": None if propagator is None else propagator.to_json(),
        "options": options.to_json(),
    }


def manifest(
    image: Image,
    card: ModelCard,
    options: Options,
    entries: Sequence[PromptEntry],
    names: dict[int, str],
    propagated: Mapping[int, Mapping[int, str]],
    *,
    propagator: ModelCard | None = None,
    locked: Sequence[int] = (),
    priority: Sequence[int] = (),
) -> dict[str, Any]:
    """The answer to "how was this mask made?"; who made it is not recorded.

    Args:
        image: what was delineated.
        card: the model's.
        options: the session's.
        entries: the prompts.
        names: of the objects.
        propagated: frames that each object was carried to, and how.
        propagator: the card of the model that carried; None where it is the same.
        locked: objects that others were kept off, in the order in which they were locked.
        priority: objects that lie above others in a label map, the uppermost first.
    """
    objects: dict[str, Any] = {}
    for entry in entries:
        facts = objects.setdefault(
            str(entry.object_id), {"name": names.get(entry.object_id), "prompts": []}
        )
        facts["prompts"].append(
            {"frame": entry.frame, "answered": entry.answered, **to_json(entry.prompt)}
        )
    for object_id, frames in propagated.items():
        if frames:
            objects[str(object_id)]["propagated_frames"] = sorted(frames)
            objects[str(object_id)]["propagated_how"] = sorted(set(frames.values()))
    return {
        **header(image, card, options, propagator),
        "objects": objects,
        "overlap": RULE,
        "locked": list(locked),
        "priority": list(priority),
        "notice": "Research use only; not a medical device.",
    }


def _plain(value: Any) -> Any:
    """A NumPy number as Python's, since JSON knows no other."""
    return value.item() if isinstance(value, np.generic) else value
