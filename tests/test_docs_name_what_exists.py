"""Documents name what there is: files, links, names of the package, command lines, recipe keys."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import textwrap
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import limner

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = Path(limner.__file__).parent
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
DOCUMENTS = [
    *(CHECKOUT / name for name in TOP),
    *sorted((CHECKOUT / "docs").rglob("*.md")),
    *sorted((PACKAGE / "weights").glob("*.md")),
]

# What a document may name although it is not here.
ALLOWED_FILES = {
    *(f"{name}/" for name in ("images", "masks", "labels", "instances", "scribbles", "frames")),
    *(f"{name}/" for name in ("imagesTr", "imagesTs", "labelsTr")),  # of data sets
    "models/medicosam.py",  # demonstrations that were not merged: docs/notes/house.md
    "prompts/kinds/ellipse.py",
    "recipes/mean-teacher.yaml",
    "train/tasks/mean_teacher.py",
}
ALLOWED_OPTIONS = {"--ellipse"}
ALLOWED_WORDS = {
    "CACHE_DIR",  # of OpenVINO
    "JOURNAL",
    "https_proxy",
    "pseudo_trainable",  # of splits.json
}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUOTED = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "docs|tests|benchmarks|recipes|src"
FILE = re.compile(rf"(?<![\w/.])(?:{FOLDERS})/[\w./-]+\.(?:py|md|yaml)\b")
FILE_IN_QUOTES = re.compile(r"[\w./-]+\.(?:py|md)|[a-z_]\w*/|[\w./-]+/[\w-]+\.yaml")
NAME = re.compile(r"(?<![\w./-])limner(?:\.[A-Za-z_]\w*)+(?![\w/*-])")
OPTION = re.compile(r"--[a-z][a-z0-9-]*|-[a-zA-Z](?![\w-])")
KEY = re.compile(r"([a-z]\w*): \S.*")
IDENTIFIER = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)(?:\(.*\))?")


def find_missing_files(document: Path, text: str) -> Iterator[str]:
    """Links and files that are not there; a file may be named by the end of its path."""
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", path):
            continue
        there = document.parent / path if path else document
        if not there.exists() or (anchor and anchor not in _anchors(there)):
            yield f"link {target}"
    quoted = [name for name in QUOTED.findall(text) if FILE_IN_QUOTES.fullmatch(name)]
    for name in {*FILE.findall(text), *quoted} - ALLOWED_FILES:
        if "NAME" not in name and not _is_file(name):
            yield f"file {name}"


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def _files() -> list[str]:
    roots = [PACKAGE, *(CHECKOUT / name for name in FOLDERS.split("|"))]
    found = {path for root in roots for path in root.rglob("*") if "__pycache__" not in path.parts}
    return [f"/{path.relative_to(CHECKOUT).as_posix()}" for path in found | set(roots)]


def _is_file(name: str) -> bool:
    path = "/" + name.removeprefix("./").rstrip("/")
    return any(file.endswith(path) for file in _files()) or (CHECKOUT / name).exists()


def find_missing_names(text: str) -> Iterator[str]:
    """Dotted names of the package, in prose and in code, that cannot be reached."""
    names = set(NAME.findall(text))
    for language, block in FENCE.findall(text):
        if language == "python":
            names |= set(_imported(ast.parse(textwrap.dedent(block))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield from (f"name {name}" for name in sorted(names) if not _is_name(name))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "limner":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_name(name: str) -> bool:
    found: Any = limner
    reached = "limner"
    for part in name.split(".")[1:]:
        reached = f"{reached}.{part}"
        if hasattr(found, part):
            found = getattr(found, part)
        elif part in getattr(found, "__annotations__", ()):
            return True
        else:
            try:
                found = importlib.import_module(reached)
            except ModuleNotFoundError as error:  # a library that is not installed says nothing
                return not (error.name or "").startswith("limner")
    return True


@cache
def _command_line() -> Any:
    typer = pytest.importorskip("typer")
    return typer.main.get_command(importlib.import_module("limner.cli.__main__").app)


def find_commands(text: str) -> Iterator[tuple[str, bool]]:
    """Command lines, and whether they are whole: those of code blocks are, unless abridged by …"""
    for language, block in FENCE.findall(text):
        if language in ("", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|;", re.sub(r"(^|\s)#.*", "", line)):
                    yield " ".join(part.split()), "…" not in part
    yield from ((quoted, False) for quoted in QUOTED.findall(FENCE.sub("", text)))


def find_wrong_commands(text: str) -> Iterator[str]:
    """Command lines of ``limner`` that it would refuse, and options that scripts do not have."""
    for line, is_whole in find_commands(text):
        if line.startswith("limner ") and (problem := _refusal(line, is_whole)):
            yield f"command {line}: {problem}"
        script = re.match(r"python ((?:\w+/)+\w+\.py)", line)
        if script and (CHECKOUT / script[1]).is_file():
            source = (CHECKOUT / script[1]).read_text(encoding="utf-8")
            for option in OPTION.findall(line):
                if f'"{option}"' not in source:
                    yield f"command {line}: no {option}"
        if line.startswith("make "):
            targets = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
            if not re.search(rf"^{re.escape(line.split()[1])}:", targets, re.MULTILINE):
                yield f"command {line}: no such target"


def _refusal(line: str, is_whole: bool) -> str:
    """Why the command line would be refused; of one that is not whole, commands and options."""
    words = shlex.split(line)[1:]
    command = _command_line()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    commands = getattr(command, "commands", {})
    if words and re.fullmatch("[a-z]+", words[0]) and commands:
        return f"no command {words[0]}"
    if words and words[0].endswith((".yaml", "RECIPE")) and "run" in commands:
        command, commands = commands["run"], {}  # limner train RECIPE
    for word in words:
        option = word.split("=")[0]
        if OPTION.fullmatch(option) and option not in _options(command) | ALLOWED_OPTIONS:
            return f"no option {option}"
    if is_whole and words and not commands:
        try:
            command.make_context(command.name, words)
        except Exception as error:  # of the click that typer uses, whichever that is
            return str(error) or type(error).__name__
    return ""


def _options(command: Any) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}


@cache
def _all_options() -> set[str]:
    found: set[str] = set()
    commands = [_command_line()]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        found |= _options(command)
    for script in (CHECKOUT / "benchmarks").glob("*.py"):
        found |= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    return found


def find_missing_options(text: str) -> Iterator[str]:
    """Options that prose quotes by themselves and no command has."""
    for quoted in QUOTED.findall(FENCE.sub("", text)):
        option = OPTION.match(quoted)
        if option and option[0] not in _all_options() | ALLOWED_OPTIONS:
            yield f"option {option[0]}"


@cache
def _recipe_keys() -> set[str]:
    pytest.importorskip("torch")
    keys: set[str] = set()
    for path in (PACKAGE / "train" / "tasks").glob("*.py"):
        if path.stem != "__init__":
            module = importlib.import_module(f"limner.train.tasks.{path.stem}")
            keys |= set(module.Config.model_fields)
    return keys


def find_missing_keys(text: str) -> Iterator[str]:
    """Settings such as ``batch_size: 4`` that no recipe has."""
    for quoted in QUOTED.findall(FENCE.sub("", text)):
        key = KEY.fullmatch(quoted)
        if key and key[1] not in _recipe_keys():
            yield f"recipe key {key[1]}"


@cache
def _words() -> set[str]:
    words: set[str] = set()
    for root in (PACKAGE, *(CHECKOUT / name for name in ("tests", "benchmarks", "recipes"))):
        for path in root.rglob("*"):
            if path.suffix in (".py", ".yaml") and path != Path(__file__):
                words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    return words


def find_unknown_words(text: str) -> Iterator[str]:
    """Functions, classes, fields and the like that prose quotes and no file of code holds."""
    for quoted in QUOTED.findall(FENCE.sub("", text)):
        name = IDENTIFIER.fullmatch(quoted)
        if not name or (CHECKOUT / quoted).is_file():
            continue
        if not set(name[1].split(".")) - {"md", "json"} <= _words() | ALLOWED_WORDS:
            yield f"word {quoted}"


def _find_all(document: Path, text: str) -> Iterator[str]:
    yield from find_missing_files(document, text)
    yield from find_missing_names(text)
    yield from find_wrong_commands(text)
    yield from find_missing_options(text)
    yield from find_missing_keys(text)
    yield from find_unknown_words(text)


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: path.relative_to(CHECKOUT).as_posix()
)
def test_what_it_names_exists(document: Path) -> None:
    wrong = list(_find_all(document, document.read_text(encoding="utf-8")))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("See [it](nowhere.md).", "link nowhere.md"),
        ("See [it](docs/sessions.md#nowhere).", "link docs/sessions.md#nowhere"),
        ("In `sessions/nowhere.py`.", "file sessions/nowhere.py"),
        ("Run docs/nowhere.md.", "file docs/nowhere.md"),
        ("`limner.io.nowhere` does.", "name limner.io.nowhere"),
        ("```python\nfrom limner.io import nowhere\n```\n", "name limner.io.nowhere"),
        ("```sh\nlimner segment a.png --nowhere 3\n```\n", "no option --nowhere"),
        ("```sh\nlimner auto a.png\n```\n", "command limner auto a.png: "),
        ("`limner models nowhere`", "no command nowhere"),
        ("`python benchmarks/clicks.py --nowhere`", "no --nowhere"),
        ("`make nowhere`", "no such target"),
        ("With `--nowhere`.", "option --nowhere"),
        ("`nowhere_at_all(x)`", "word nowhere_at_all(x)"),
    ],
)
def test_what_is_not_there_is_found(text: str, problem: str) -> None:
    found = "\n".join(_find_all(CHECKOUT / "README.md", text))
    assert problem in found


def test_verbs_of_sessions_have_the_parameters_that_the_document_gives() -> None:
    text = (CHECKOUT / "docs" / "sessions.md").read_text(encoding="utf-8")
    given = re.findall(r"`(\w+)\(([^`]*)\)`", "".join(re.findall(r"^\| (`.+?) \|", text, re.M)))
    assert len(given) > 10
    for verb, parameters in given:
        verbs = limner if verb == "open_session" else limner.Session
        has = inspect.signature(getattr(verbs, verb)).parameters
        for name, default in re.findall(r"(\w+)(?:=([^,]+))?", parameters):
            assert name in has, f"{verb}({name})"
            assert not default or has[name].default == ast.literal_eval(default), f"{verb}({name})"


def test_a_recipe_key_that_is_not_there_is_found() -> None:
    assert list(find_missing_keys("`nowhere: 3`, `batch_size: 1`")) == ["recipe key nowhere"]
