"""Recipes: training configurations in YAML files, with errors in one line.

A recipe is flat: one key a line. Its ``method`` chooses the configuration
(`limner.train.task.load_method`), which says what other keys there are.
"""

from __future__ import annotations

import json
import logging
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from limner import errors
from limner.errors import FormatError
from limner.train.config import TrainConfig
from limner.train.task import load_method

if TYPE_CHECKING:
    import yaml

_log = logging.getLogger(__name__)

# YAML 1.2's plain values. PyYAML's own are those of 1.1, in which 1e-4 is text and `no` is false.
_PLAIN = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "null": r"~|null|Null|NULL|",
    "int": r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.nan",
}
_FORMER_DEFAULTS = {"dimensions": 2, "frames": 1, "adapters": 0}  # of recipes without a method
_FORMER_KEYS = frozenset(  # that some method does not have; saved runs gave all of them
    {"widths", "depths", "sizes", "shapes", "rounds", "more_rounds", "wrong", "references", "piles"}
    | set(_FORMER_DEFAULTS)
)


def read_recipe(path: Path, **changes: Any) -> TrainConfig:
    """Read the configuration of a run.

    Args:
        path: YAML: one ``key: value`` a line; values are numbers, true, false, words and
            ``[lists]`` of them; ``#`` starts a comment.
        changes: replace values of the file; None leaves them.

    Raises:
        FormatError: the file is missing or malformed, a key is unknown, a value of the wrong type
            or impossible. The message names the line or the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise FormatError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is no recipe: it is not UTF-8 text.") from error
    values = parse_yaml(text, str(path))
    if not values:
        raise FormatError(f"{path} is empty; a recipe names at least its method (see recipes/).")
    values |= {key: value for key, value in changes.items() if value is not None}
    return make_config(values, str(path), warn=True)


def make_config(values: dict[str, Any], source: str, *, warn: bool = False) -> TrainConfig:
    """A configuration from plain values, such as those of a saved one.

    Args:
        values: by key; ``method`` is one of them, except in values saved by older versions.
        source: where they come from, for messages.
        warn: log a warning for keys that have a new name.

    Raises:
        FormatError: a key is unknown, a value of the wrong type or impossible.
    """
    values = _add_method(values, source, warn=warn)
    try:
        kind: type[TrainConfig] = load_method(str(values["method"])).Config
    except ValueError as error:
        raise FormatError(f"{source}: {error}") from error
    values = _rename_keys(values, kind, source, warn=warn)
    try:
        return kind(**values)
    except ValidationError as error:
        raise FormatError(f"{source}: {_describe(error.errors()[0], kind)}") from error


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Flat YAML to plain values.

    Raises:
        FormatError: it is no YAML, has levels, or repeats a key.
    """
    yaml = errors.require("yaml", extra="train", purpose="read recipes")
    try:
        loader = _loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            shown = text.splitlines()[node.start_mark.line].strip()
            raise FormatError(
                f"{source}, line {line}: {shown!r} is not 'key: value' on one line; "
                "recipes are flat."
            )
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line, key = key_node.start_mark.line + 1, str(key_node.value)
            if isinstance(value_node, yaml.MappingNode):
                raise FormatError(
                    f"{source}, line {line}: {key + ':'!r} is not 'key: value' on one line; "
                    "recipes are flat."
                )
            if key in values:
                raise FormatError(f"{source}, line {line}: {key!r} is given twice.")
            values[key] = loader.construct_object(value_node, deep=True)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise FormatError(f"{source}{where}: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise FormatError(f"{source} is no YAML: {error}".replace("\n", " ")) from error
    return values


def write_config(path: Path, config: TrainConfig) -> None:
    """Save a configuration, so that `read_recipe` reads the same back."""
    from limner.atomic import atomic_bytes

    lines = [f"{key}: {json.dumps(value)}" for key, value in config.to_json().items()]
    atomic_bytes(path, ("\n".join(lines) + "\n").encode())


def _loader(text: str) -> yaml.SafeLoader:
    """PyYAML's safe loader with the plain values of YAML 1.2."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, as PyYAML has it

    for name, pattern in _PLAIN.items():
        Loader.add_implicit_resolver(
            f"tag:yaml.org,2002:{name}", re.compile(f"(?:{pattern})$"), None
        )
    return Loader(text)


def infer_method(values: Mapping[str, Any]) -> str:
    """The method of a configuration of former versions, in which other keys told it."""
    former = {key: values.get(key, default) for key, default in _FORMER_DEFAULTS.items()}
    if former["adapters"]:
        return "xmem-adapters"
    if former["dimensions"] == 3:
        return "prompted-3d"
    return "prompted-2d" if former["frames"] == 1 else "tracking"


def _add_method(values: dict[str, Any], source: str, *, warn: bool) -> dict[str, Any]:
    if "method" in values:
        return values
    method = infer_method(values)
    kind: type[TrainConfig] = load_method(method).Config
    known = set(kind.model_fields) | set(kind.renamed)
    values = {k: v for k, v in values.items() if k in known or k not in _FORMER_KEYS}
    if warn:
        _log.warning(
            "%s has no method; it is read as 'method: %s', which a later version will not do.",
            source,
            method,
        )
    return {"method": method, **values}


def _rename_keys(
    values: dict[str, Any], kind: type[TrainConfig], source: str, *, warn: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = kind.renamed.get(key, key)
        if name in found or (name != key and name in values):
            raise FormatError(
                f"{source}: {key!r} is the former name of {name!r}; give one of them."
            )
        if name != key and warn:
            _log.warning("%s: %r is now called %r; use that name.", source, key, name)
        found[name] = value
    return found


_TYPES = {"int": int, "float": float, "string": str, "bool": bool}


def _describe(error: ErrorDetails, kind: type[TrainConfig]) -> str:
    """One line about the first thing that is wrong: what was given, and what is allowed."""
    key = str(error["loc"][0]) if error["loc"] else ""
    given, reason = error["input"], error["type"]
    if reason == "extra_forbidden":
        return f"unknown key {key!r}; known are {', '.join(kind.model_fields)}."
    if reason == "value_error":
        text = str(error["ctx"]["error"])
        return f"{key}={given}; {text}" if key else text
    if reason == "literal_error":
        allowed = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        return f"{key}={given!r}; use one of {allowed}."
    if reason == "tuple_type":
        (inner, *_) = typing.get_args(kind.model_fields[key].annotation)
        inner = getattr(inner, "__origin__", inner)  # of Annotated
        return f"{key}={given!r}; it is a [list] of {inner.__name__}."
    wanted = reason.split("_")[0]
    if wanted in _TYPES:
        return f"{key}={given!r}; it is of type {_TYPES[wanted].__name__}."
    return f"{key}={given!r}; {error['msg'][0].lower()}{error['msg'][1:]}."
