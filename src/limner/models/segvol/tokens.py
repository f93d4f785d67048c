"""CLIP's tokenizer (byte pairs, https://arxiv.org/abs/1508.07909, as in
https://github.com/openai/CLIP) for words that `vocabulary` has no numbers of.

Its list of merges is not part of limner. It is searched where people have it: in a file or folder
that ``LIMNER_CLIP`` names, beside the weights, among the kept weights, inside an installed
``open_clip`` or ``clip`` (neither is imported), and in the Hugging Face hub's cache.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from limner.checkpoints.sources import in_hub_cache
from limner.checkpoints.store import weights_folder
from limner.errors import CheckpointError, PromptError
from limner.models.segvol.vocabulary import END, START, known_tokens, pieces

LONGEST = 77  # tokens of a sentence
VARIABLE = "LIMNER_CLIP"
FILES = (
    "merges.txt",
    "bpe_simple_vocab_16e6.txt.gz",
    "bpe_simple_vocab_16e6.txt",
    "tokenizer.json",
)
_PACKAGES = ("open_clip", "clip")
_HUB = "hf:openai/clip-vit-base-patch32/"
_MERGES = 48_894  # that CLIP uses; the published list goes on
_LAST = "</w>"  # marks the last part of a word

Merges = dict[tuple[str, str], int]


def sentence(text: str, model: str, beside: Path | None = None) -> tuple[int, ...]:
    """CLIP's numbers of the sentence about a structure, marks included.

    Args:
        text: any words.
        model: its name, for messages.
        beside: the weights file.

    Raises:
        PromptError: more than CLIP reads, or words that need CLIP's list of merges, which is not
            here; the message says how to get it.
        CheckpointError: the list is damaged.
    """
    found = known_tokens(text)
    if found is None:
        file = merges_file(beside)
        if file is None:
            raise PromptError(
                f"{model} has the token numbers of its trained names only, not of {text!r}. For "
                "other words it needs CLIP's list of merges: pip install --no-deps "
                f"open_clip_torch, or put {FILES[0]} or {FILES[1]} beside the weights or where "
                f"{VARIABLE} says. The names are in docs/models.md."
            )
        ranks, numbers = _read(file)
        split = [number for piece in pieces(text) for number in _split(piece, ranks, numbers)]
        found = (START, *split, END)
    if len(found) > LONGEST:
        raise PromptError(
            f"{model} reads sentences of {LONGEST} tokens, and with {text[:40]!r}… it is "
            f"{len(found)}; use a name."
        )
    return found


def merges_file(beside: Path | None = None) -> Path | None:
    """CLIP's list of merges on this machine, None if it is nowhere.

    Args:
        beside: the weights file.

    Raises:
        CheckpointError: ``LIMNER_CLIP`` names nothing of the sort.
    """
    own = os.environ.get(VARIABLE)
    if own:
        found = _in(Path(own).expanduser())
        if found is None:
            raise CheckpointError(
                f"{VARIABLE} is {own}, where there is none of {', '.join(FILES)}; name such a file "
                "or its folder."
            )
        return found
    return next((file for place in _places(beside) if (file := _in(place)) is not None), None)


def _places(beside: Path | None) -> Iterator[Path]:
    if beside is not None:
        yield beside if beside.is_dir() else beside.absolute().parent
    yield weights_folder()
    for name in _PACKAGES:
        package = importlib.util.find_spec(name)
        for folder in (package and package.submodule_search_locations) or ():
            yield Path(folder)
    for name in ("merges.txt", "tokenizer.json"):
        cached = in_hub_cache(_HUB + name)
        if cached is not None:
            yield cached


def _in(place: Path) -> Path | None:
    if place.is_file():
        return place
    return next((place / name for name in FILES if (place / name).is_file()), None)


@cache
def _read(file: Path) -> tuple[Merges, dict[str, int]]:
    """Merges with their ranks, and the numbers of parts of words, which follow from them.

    Raises:
        CheckpointError: not CLIP's.
    """
    try:
        lines = _lines(file)
        pairs = [(first, second) for first, second in (line.split() for line in lines[:_MERGES])]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is no list of CLIP's merges: {error}.") from error
    if len(pairs) != _MERGES or pairs[0] != ("i", "n"):
        raise CheckpointError(
            f"{file} is not CLIP's list of merges: it has {len(pairs)} of {_MERGES}. Use the files "
            "of openai/clip-vit-base-patch32."
        )
    letters = list(_letters().values())
    parts = [*letters, *(letter + _LAST for letter in letters), *(a + b for a, b in pairs)]
    return {pair: k for k, pair in enumerate(pairs)}, {part: k for k, part in enumerate(parts)}


def _lines(file: Path) -> list[str]:
    if file.suffix == ".json":
        merges = json.loads(file.read_text(encoding="utf-8"))["model"]["merges"]
        return [line if isinstance(line, str) else " ".join(line) for line in merges]
    data = file.read_bytes()
    text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    lines = text.split("\n")
    return lines[1:] if "#version" in lines[0] else lines


@cache
def _letters() -> dict[int, str]:
    """A printable letter for every byte, in the order of their numbers."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + k) for k, byte in enumerate(others)
    }


def _split(word: str, ranks: Merges, numbers: dict[str, int]) -> list[int]:
    """The numbers of a word's parts: neighbours are merged, the earliest rule first."""
    parts = [_letters()[byte] for byte in word.encode()]
    parts[-1] += _LAST
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda p: ranks.get(p, len(ranks)))
        if pair not in ranks:
            break
        merged: list[str] = []
        for part in parts:
            if merged and (merged[-1], part) == pair:
                merged[-1] += part
            else:
                merged.append(part)
        parts = merged
    return [numbers[part] for part in parts]
