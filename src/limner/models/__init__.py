"""Models by name: one file per family, one ``VARIANTS`` table in each; the file name is the
registry.

The module can still be called: ``limner.models()`` is the old name of `limner.list_models`.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import pkgutil
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from limner.adapters.protocols import (
    AnyModel,
    AutomaticModel,
    BatchModel,
    CheckingModel,
    EncodedFrame,
    EncodingModel,
    MaskCarrier,
    MemoryLimits,
    MemoryModel,
    ModelCard,
    PreviousFrame,
    PromptableModel,
    ProposingModel,
    Question,
    SamplingModel,
    Segmentation,
    SlabModel,
    TrackerModel,
    Variant,
    View,
)
from limner.checkpoints import store
from limner.errors import CheckpointError
from limner.runtime import DEVICE_HINT, is_device

__all__ = [
    "AnyModel",
    "AutomaticModel",
    "BatchModel",
    "CheckingModel",
    "EncodedFrame",
    "EncodingModel",
    "MaskCarrier",
    "MemoryLimits",
    "MemoryModel",
    "ModelCard",
    "PreviousFrame",
    "PromptableModel",
    "ProposingModel",
    "Question",
    "SamplingModel",
    "Segmentation",
    "SlabModel",
    "TrackerModel",
    "Variant",
    "View",
    "check_promptable",
    "create_model",
    "create_promptable",
    "default_model",
    "how_to_get",
    "kept_weights",
    "list_families",
    "list_models",
    "variant",
    "variants",
]

_log = logging.getLogger(__name__)

_RENAMED = {  # old names, for one release
    "Before": "PreviousFrame",
    "CarryingModel": "MaskCarrier",
    "FollowingModel": "TrackerModel",
    "PropagatingModel": "MemoryModel",
}
_DEFAULTS = {"image": "limner-2d", "volume": "limner-3d", "video": "limner-seq"}


def default_model(kind: str, *, flat: bool = False, propagates: bool = False) -> str:
    """The name of the model that is used where none is named.

    Args:
        kind: of the image: ``"image"``, ``"volume"`` or ``"video"``.
        flat: of a volume or video, only single slices or frames are meant.
        propagates: masks will be propagated from slice to slice or frame to frame.
    """
    return _DEFAULTS["video" if propagates else "image" if flat else kind]


def list_families() -> tuple[str, ...]:
    """Names of the families: the public modules of this folder, none of which is imported."""
    names = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(n for n in names if not n.startswith("_")))


def list_models() -> tuple[ModelCard, ...]:
    """The cards of all models, by family and variant."""
    return tuple(chosen.card for chosen in variants())


def variants() -> tuple[Variant, ...]:
    """The cards of all models with their builders and weights, by family and variant."""
    return tuple(v for family in list_families() for v in _variants(family).values())


def kept_weights(chosen: Variant) -> Path | None:
    """The weights file of a model that ``limner models fetch`` or ``add`` has put here, or None."""
    found = (store.locate(file.name) for file in chosen.weights)
    return next((path for path in found if path is not None), None)


def how_to_get(chosen: Variant) -> str:
    """What to do to get the weights of a model; no capital at the start, no stop at the end."""
    name = chosen.card.name
    add = f"limner models add {name} FILE"
    if any(file.sources for file in chosen.weights):
        return f"limner models fetch {name} gets it, {add} keeps one that you have"
    note = next((file.note for file in chosen.weights if file.note), "").rstrip(".")
    return note if "limner models add" in note else f"{note}; then {add}".removeprefix("; then ")


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    exact: bool = False,
    keep_embeddings: bool = False,
) -> AnyModel:
    """Build a model: one that answers prompts, or one that needs none (`AutomaticModel`,
    `SamplingModel`).

    Args:
        name: ``"family/variant"``, or ``"family"`` where it has one variant; see ``limner models``.
        weights: file with its weights; None for the ones shipped, for those that ``limner models
            fetch`` or ``add`` has put here, or where none are needed.
        device: ``"auto"``, ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:1"``.
        exact: compute in float32 even where less was measured to give the same masks.
        keep_embeddings: keep encoded images on disk, so that the same image is not encoded
            again, also by other processes; at most 2 GiB (`docs/models.md`). Answers are the same.

    Raises:
        ValueError: no such model or device; the message lists those that exist.
        CheckpointError: the weights file does not exist or does not fit, or none is taken; or the
            model needs one and there is none, and the message says how to get it.
    """
    chosen = variant(name)
    if not is_device(device):
        raise ValueError(f"Unknown device {device!r}; {DEVICE_HINT}.")
    options: dict[str, Any] = {"device": device, "exact": exact}
    if keep_embeddings and chosen.keeps_embeddings:
        options["keep_embeddings"] = True
    elif keep_embeddings:
        _log.warning("%s encodes nothing ahead, so no embeddings are kept.", chosen.card.name)
    if weights is None and chosen.weights:
        return _build_kept(chosen, options)
    path = None if weights is None else Path(weights)
    if path is not None and not path.exists():
        raise CheckpointError(f"There is no weights file {path}.")
    model = chosen.build(weights=path, **options)
    if path is not None and model.card.weights_sha256 is None:
        raise CheckpointError(f"{name} takes no weights file, so {path} would be ignored.")
    return model


def create_promptable(name: str, **options: Any) -> PromptableModel:
    """Build a model that answers prompts; the options are those of `create_model`.

    Raises:
        ValueError: besides, if the model takes no prompts.
        CheckpointError: as for `create_model`.
    """
    return check_promptable(create_model(name, **options))


def check_promptable(model: AnyModel) -> PromptableModel:
    """The model, if it answers prompts.

    Raises:
        ValueError: it takes none; the message says what to do with it.
    """
    if isinstance(model, PromptableModel):
        return model
    raise ValueError(
        f"{model.card.name} labels whole images and takes no prompts: use limner auto IMAGE "
        "--model NAME (limner.segment_automatically); with --journal FILE its result can be "
        "corrected by limner resume FILE."
    )


def _build_kept(chosen: Variant, options: Mapping[str, Any]) -> AnyModel:
    """With the weights that are kept here."""
    name, path = chosen.card.name, kept_weights(chosen)
    if path is None:
        raise CheckpointError(
            f"{name} needs a weights file, which is not here: {how_to_get(chosen)}; "
            "--weights FILE (weights=) uses one once."
        )
    model = chosen.build(weights=path, **options)
    record = store.record_of(path)
    if record is not None and model.card.weights_sha256 not in (None, record.sha256):
        raise CheckpointError(
            f"{path} has changed since it was put there; remove it with "
            f"limner models remove {name} and get it again."
        )
    return model


def variant(name: str) -> Variant:
    """The card and builder of a model, by name. Imports its family and no other."""
    family, _, tag = name.partition("/")
    module = family.replace("-", "_")
    if module not in list_families():
        raise ValueError(_unknown_model(name))
    table = _variants(module)
    if not tag and len(table) == 1:
        return next(iter(table.values()))
    if tag not in table:
        known = [v.card.name for v in table.values()]
        near = _did_you_mean(name, known) if tag else ""
        raise ValueError(f"Unknown model {name!r}; {near}{family} has {', '.join(known)}.")
    return table[tag]


def _unknown_model(name: str) -> str:
    """The message for a name of no family, with the names that are like it."""
    names = [v.card.name for v in variants()]
    families = ", ".join(dict.fromkeys(n.partition("/")[0] for n in names))
    near = _did_you_mean(name, [*names, *(n.partition("/")[0] for n in names)])
    return f"Unknown model {name!r}; {near}families are {families} (see limner models)."


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    spelt = {n.lower().replace("_", "-"): n for n in names}
    near = difflib.get_close_matches(name.lower().replace("_", "-"), spelt, n=3)
    return f"did you mean {' or '.join(spelt[n] for n in near)}? " if near else ""


def _variants(family: str) -> dict[str, Variant]:
    table: dict[str, Variant] = importlib.import_module(f"limner.models.{family}").VARIANTS
    return table


if TYPE_CHECKING:
    _create_model, _default_model, _list_models = create_model, default_model, list_models


class ModelsModule(ModuleType):
    """This module, which its old name makes callable; so do type checkers see `limner.models`."""

    if TYPE_CHECKING:
        create_model = staticmethod(_create_model)
        default_model = staticmethod(_default_model)
        list_models = staticmethod(_list_models)

    def __call__(self) -> tuple[ModelCard, ...]:
        warnings.warn(
            "limner.models() is now limner.list_models(); the old name goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return list_models()

    def __getattr__(self, name: str) -> Any:
        if name in _RENAMED:
            new = _RENAMED[name]
            message = f"limner.models.{name} is now {new}."
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return globals()[new]
        raise AttributeError(f"module 'limner.models' has no attribute {name!r}")


sys.modules[__name__].__class__ = ModelsModule
