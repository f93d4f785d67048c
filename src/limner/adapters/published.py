"""Builder of published models: weights file to compiled parts, one specification per family.

A family says which network there is (`Part`), how large it is as published and how large a reduced
one for tests is, and what the adapter makes of the compiled parts. Finding and hashing the file,
renaming its tensors, compiling, keeping what was compiled, and the error messages are here, once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from limner.adapters.protocols import ModelCard, PromptableModel, Variant
from limner.adapters.weights import hash_weights
from limner.checkpoints.cards import WeightsCard

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limner.runtime import Network

Sizes = TypeVar("Sizes")
Shape = tuple[int | None, ...]
Remap = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Weights(Protocol):
    """Where the tensors of a network come from."""

    def fill(self, network: nn.Module, *, leave_out: tuple[str, ...] = ()) -> None:
        """Put them into a network, in place.

        Args:
            network: all of whose parameters get a value.
            leave_out: prefixes of names in the file that belong to other parts.

        Raises:
            CheckpointError: the file is of another network; the message names some differences.
        """


@dataclass(frozen=True)
class FileWeights:
    """The tensors of a published file.

    Attributes:
        path: of the file.
        wanted: names in the published file that tell it from others; None for the network's own.
        remap: published names to the network's; None where they are the same.
    """

    path: Path
    wanted: Collection[str] | None = None
    remap: Remap | None = None

    def tensors(self, wanted: Collection[str] | None = None) -> dict[str, torch.Tensor]:
        """All tensors of the file by the network's names."""
        from limner.checkpoints.load import read_checkpoint

        tensors = read_checkpoint(self.path, wanted=self.wanted or wanted).tensors
        return dict(tensors if self.remap is None else self.remap(tensors))

    def fill(self, network: nn.Module, *, leave_out: tuple[str, ...] = ()) -> None:
        """See `Weights.fill`."""
        from limner.checkpoints.load import fill

        tensors = self.tensors(network.state_dict().keys())
        fill(network, {k: v for k, v in tensors.items() if not k.startswith(leave_out)}, self.path)


@dataclass(frozen=True)
class RandomWeights:
    """Random tensors of ordinary magnitude, the same for a seed on every machine.

    Attributes:
        seed: of the tensors; each depends on its name, too, so parts that are built one by one
            agree.
    """

    seed: int

    def fill(self, network: nn.Module, *, leave_out: tuple[str, ...] = ()) -> None:
        """See `Weights.fill`."""
        import torch

        layer_norms = [n for n, m in network.named_modules() if isinstance(m, torch.nn.LayerNorm)]
        gains = {f"{name}.weight" for name in layer_norms}
        generator = torch.Generator()
        with torch.no_grad():
            for name, tensor in network.state_dict().items():
                if not tensor.is_floating_point():
                    continue
                generator.manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
                values = torch.randn(tensor.shape, generator=generator)
                if tensor.ndim > 1 and name not in gains:  # keeps the variance between layers
                    values *= (tensor.numel() / len(tensor)) ** -0.5
                else:
                    values *= 0.1
                    values += float(name.endswith(("weight", "running_var")))
                tensor.copy_(values)


@dataclass(frozen=True)
class Part:
    """A part of a network that is compiled by itself.

    Attributes:
        name: within the network, such as ``"encoder"``.
        module: makes it, on the CPU, in float32, with its weights.
        inputs: a shape per input, None for an open size (`limner.runtime.compile_module`).
        published: makes it in the authors' order of operations; None where `module` does.
        precision: ``"auto"`` where bf16 was measured to leave masks as they are, else ``"fp32"``.
        examples: shapes to record with, where open sizes depend on one another.
        encodes: whether its outputs are embeddings, worth keeping on disk where that is asked for.
        deferred: compiled when it is first needed, since it is large and seldom is.
    """

    name: str
    module: Callable[[Weights], nn.Module]
    inputs: Sequence[Shape]
    published: Callable[[Weights], nn.Module] | None = None
    precision: str = "fp32"
    examples: Sequence[tuple[int, ...]] | None = None
    encodes: bool = False
    deferred: bool = False


@dataclass(frozen=True)
class Compiled(Generic[Sizes]):
    """What an adapter is made of.

    Attributes:
        card: with the hash of the weights.
        sizes: of the network.
        networks: parts by name.
        deferred: parts that are compiled when they are first called for, by name.
        exact: whether to compute as the authors do.
        file: of the weights; None for random ones.
    """

    card: ModelCard
    sizes: Sizes
    networks: Mapping[str, Network]
    deferred: Mapping[str, Callable[[], Network]]
    exact: bool
    file: Path | None

    def __getitem__(self, part: str) -> Network:
        return self.networks[part]


@dataclass(frozen=True)
class Published(Generic[Sizes]):
    """One published model.

    Attributes:
        card: its facts.
        weights: where its weights can be had, best first.
        network: its name in the cache of compiled parts; shared by cards of one network.
        sizes: of the published network.
        small: of a reduced one, on which an answer takes much less than a second on one core.
        parts: of the network of some sizes.
        model: the adapter around the compiled parts.
        wanted: see `FileWeights`.
        remap: likewise.
        read_sizes: reads the sizes from a file; None where all files have `sizes`.
    """

    card: ModelCard
    weights: tuple[WeightsCard, ...]
    network: str
    sizes: Sizes
    small: Sizes
    parts: Callable[[Sizes], Sequence[Part]]
    model: Callable[[Compiled[Sizes]], PromptableModel]
    wanted: Collection[str] | None = None
    remap: Remap | None = None
    read_sizes: Callable[[Path], Sizes] | None = None

    def variant(self) -> Variant:
        """The entry of a family's ``VARIANTS``."""
        return Variant(
            self.card,
            self.build,
            self.weights,
            keeps_embeddings=any(part.encodes for part in self.parts(self.sizes)),
            build_random=self.build_random,
        )

    def build(
        self,
        *,
        weights: Path | None = None,
        device: str = "auto",
        exact: bool = False,
        keep_embeddings: bool = False,
    ) -> PromptableModel:
        """The model with the weights of a file; arguments as for `limner.create_model`.

        Raises:
            CheckpointError: no file, none that can be read, or one of another network.
        """
        from limner.checkpoints.archive import weights_file

        file = None if weights is None else weights_file(weights)
        digest = hash_weights(file, self.card.name, self.advice)
        assert file is not None
        sizes = self.sizes if self.read_sizes is None else self.read_sizes(file)
        return self._assemble(
            self.file_weights(file),
            sizes,
            digest,
            file=file,
            device=device,
            exact=exact,
            keep_embeddings=keep_embeddings,
        )

    def build_random(
        self, seed: int, *, device: str = "auto", exact: bool = False
    ) -> PromptableModel:
        """The model at its reduced size with random weights; needs no file."""
        return self._assemble(
            RandomWeights(seed), self.small, f"random{seed}", device=device, exact=exact
        )

    def file_weights(self, path: Path) -> FileWeights:
        """The tensors of a published file by the network's names."""
        return FileWeights(path, self.wanted, self.remap)

    @property
    def advice(self) -> str:
        """How to get the file, the rest of a sentence."""
        first = self.weights[0]
        if first.sources:
            return f"{first.name}: limner models fetch {self.card.name}"
        return f"{first.name}: {first.note}"

    def _assemble(
        self,
        weights: Weights,
        sizes: Sizes,
        digest: str,
        *,
        device: str,
        exact: bool,
        file: Path | None = None,
        keep_embeddings: bool = False,
    ) -> PromptableModel:
        from limner import runtime

        networks: dict[str, Network] = {}
        deferred: dict[str, Callable[[], Network]] = {}
        for part in self.parts(sizes):
            module = part.published if exact and part.published is not None else part.module
            compiled = partial(
                runtime.compile_module,
                partial(module, weights),
                key=f"{self.network}-{digest}-{part.name}",
                inputs=part.inputs,
                device=device,
                exact=exact,
                precision=part.precision,
                remember=keep_embeddings and part.encodes,
                examples=part.examples,
            )
            if part.deferred:
                deferred[part.name] = compiled
            else:
                networks[part.name] = compiled()
        card = self.card if file is None else replace(self.card, weights_sha256=digest)
        return self.model(Compiled(card, sizes, networks, deferred, exact, file))
