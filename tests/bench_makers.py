"""Data folders and models for the tests of the benchmark, made from shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.models import Segmentation, View, create_model
from limner.prompts.types import Click, Example, Prompt

SIDE = 64


def picture(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A grey picture of two bright blocks on noise, and their label map (1 and 2)."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
    labels[8:28, 10:30] = 1
    labels[38:56, 34:58] = 2
    image = 40 + 80 * labels.astype(float) + rng.normal(0, 5, labels.shape)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def write_png(path: Path, array: NDArray[Any]) -> None:
    """Write a PNG, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_set(folder: Path, stems: Sequence[str] = ("a", "b"), **facts: Any) -> Path:
    """One data set; `facts` become its ``dataset.json``."""
    for seed, stem in enumerate(stems):
        image, labels = picture(seed)
        write_png(folder / "images" / f"{stem}.png", image)
        write_png(folder / "masks" / f"{stem}.png", labels)
    if facts:
        (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def make_root(folder: Path) -> Path:
    """A data root with sets of every standing, and what must never be scored."""
    names = ["2d/known", "2d/strange", "2d/between", "2d/guessed", "pool/2d/cells"]
    for name in names:
        make_set(folder / name, ("a", "b", "c"), modality="CT (slices)", targets={"1": "left"})
    lists = {"train": ["a"], "val": ["b"], "test": ["c"]}
    del names[-1]  # of a pool, which is no part of "sets"
    splits = {
        "test_only": ["2d/strange"],
        "never_scored": ["2d/guessed"],
        "fixtures": [],
        "train_commercial_ok": ["2d/known", "pool/2d/cells"],
        "unit": {"2d/between": "component"},
        "sets": dict.fromkeys(names, lists),
    }
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


class Fussy:
    """The inscribed ellipse, but it raises when there are `refused` prompts or more."""

    def __init__(self, name: str = "fussy", refused: int = 2) -> None:
        self._inner = create_model("baseline/ellipse")
        self.card = replace(self._inner.card, name=name)
        self._refused = refused

    def embed(self, view: View) -> Any:
        """As the ellipse."""
        return self._inner.embed(view)

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """As the ellipse, until there are too many prompts."""
        if len(prompts) >= self._refused:
            raise RuntimeError("no more prompts, please")
        return self._inner.segment(embedding, prompts, previous)


class MeanMask:
    """The mean of the masks that it is shown, stretched over the picture; clicks change a pixel.

    Args:
        name: on its card.
        prompts: that it understands.
    """

    def __init__(self, name: str = "mean", prompts: Sequence[str] = ("example",)) -> None:
        card = create_model("toy").card
        self.card = replace(card, name=name, prompts=frozenset(prompts), zoom=False)
        self.shown: list[list[Example]] = []  # of every question

    def embed(self, view: View) -> Any:
        """The picture's shape."""
        return view.shape

    def segment(
        self,
        embedding: Any,
        prompts: Sequence[Prompt],
        previous: NDArray[np.float32] | None = None,
    ) -> Segmentation:
        """Above 0 where most of the masks are."""
        examples = [p for p in prompts if isinstance(p, Example)]
        self.shown.append(examples)
        logits = np.zeros(embedding, dtype=np.float32)
        for example in examples:
            rows, columns = (
                (np.arange(n) * m // n) for n, m in zip(embedding, example.mask.shape, strict=True)
            )
            logits += np.where(example.mask[np.ix_(rows, columns)], 1, -1)
        for prompt in prompts:
            if isinstance(prompt, Click):
                row, column = (int(x) for x in prompt.at)
                logits[row, column] = 9 if prompt.positive else -9
        return Segmentation(logits, 0.5)
