"""Models by name: one file per family, one ``VARIANTS`` table in each; the file name is the
registry.

The module can be called: ``limner.models()`` is the tuple of all cards. (`limner.models` is both
this package and a public verb, so the package itself has to answer the call.)
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from limner.errors import CheckpointError
from limner.models._family import (
    BatchModel,
    ModelCard,
    PromptableModel,
    Question,
    Segmentation,
    Variant,
    View,
)

__all__ = [
    "BatchModel",
    "ModelCard",
    "PromptableModel",
    "Question",
    "Segmentation",
    "Variant",
    "View",
    "cards",
    "create_model",
    "default_model",
    "list_families",
]


_FLAT_DEFAULT, _SOLID_DEFAULT = "limner-2d", "classical/graphcut"  # the best of those that ship


def default_model(kind: str, *, flat: bool = False) -> str:
    """The name of the model that is used where none is named.

    Args:
        kind: of the image: ``"image"``, ``"volume"`` or ``"video"``.
        flat: of a volume, only single slices are meant.
    """
    return _SOLID_DEFAULT if kind == "volume" and not flat else _FLAT_DEFAULT


def list_families() -> tuple[str, ...]:
    """Names of the families: the public modules of this folder, none of which is imported."""
    names = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(n for n in names if not n.startswith("_")))


def cards() -> tuple[ModelCard, ...]:
    """The cards of all models, by family and variant."""
    return tuple(
        variant.card for family in list_families() for variant in _variants(family).values()
    )


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    exact: bool = False,
) -> PromptableModel:
    """Build a model.

    Args:
        name: ``"family/variant"``, or ``"family"`` where it has one variant; see ``limner models``.
        weights: file with its weights; None for the ones shipped or none needed.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        exact: compute in float32 even where less was measured to give the same masks.

    Raises:
        ValueError: no such model or device; the message lists those that exist.
        CheckpointError: the weights file does not exist or does not fit, or none is taken.
    """
    chosen = variant(name)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"Unknown device {device!r}; use auto, cpu, cuda or cuda:N.")
    path = None if weights is None else Path(weights)
    if path is not None and not path.exists():
        raise CheckpointError(f"There is no weights file {path}.")
    model = chosen.build(weights=path, device=device, exact=exact)
    if path is not None and model.card.weights_sha256 is None:
        raise CheckpointError(f"{name} takes no weights file, so {path} would be ignored.")
    return model


def variant(name: str) -> Variant:
    """The card and builder of a model, by name. Imports its family and no other."""
    family, _, tag = name.partition("/")
    module = family.replace("-", "_")
    if module not in list_families():
        raise ValueError(f"Unknown model {name!r}; families are {', '.join(list_families())}.")
    table = _variants(module)
    if not tag and len(table) == 1:
        return next(iter(table.values()))
    if tag not in table:
        known = ", ".join(v.card.name for v in table.values())
        raise ValueError(f"Unknown model {name!r}; {family} has {known}.")
    return table[tag]


def _variants(family: str) -> dict[str, Variant]:
    table: dict[str, Variant] = importlib.import_module(f"limner.models.{family}").VARIANTS
    return table


class _CallableModule(ModuleType):
    def __call__(self) -> tuple[ModelCard, ...]:
        return cards()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module 'limner.models' has no attribute {name!r}")


sys.modules[__name__].__class__ = _CallableModule
