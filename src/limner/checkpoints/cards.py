"""Weights cards: where a published weights file comes from; facts, no code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightsCard:
    """One weights file somewhere in the world.

    Attributes:
        name: of the file, as it is kept.
        sources: where to fetch it, best first: ``"hf:owner/repository/file"`` on the Hugging Face
            hub, or an ``https`` address. Empty where nobody offers it for direct download.
        licence: SPDX identifier of the weights, or what the authors say.
        size: bytes, None where not known; checked together with the hash.
        sha256: of the whole file, None where this project has not seen it.
        note: one line for the user, such as how to get a file that has no source.
    """

    name: str
    sources: tuple[str, ...]
    licence: str
    size: int | None = None
    sha256: str | None = None
    note: str = ""
