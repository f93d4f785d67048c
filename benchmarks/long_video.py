"""A long video, of which nothing is ever all in memory: speed and memory from beginning to end, and
beside them one step of XMem as its authors run it, in eager PyTorch.

Run: python benchmarks/long_video.py --model limner-seq [--propagator classical/flow]
[--frames 5000] [--size 256] [--objects 1] [--xmem 5] [--journal FILE]. Prints Markdown.

Blobs on a textured ground move, turn, swell and change their outline; the ground drifts, and there
is noise. Frames are made when they are asked for. The blobs are given as masks on the first frame
and carried forward. Dice is that of the first and the last 100 frames.

XMem has random weights, which change no time: `models/_xmem_network.py` in float32, its memory read
included (distances, the 30 nearest, their values), with what it remembers late in such a video, 7
frames and 10,000 prototypes. Frames are scaled to 480 pixels as published, and as they are. A frame
costs the frame, the read and the decoder, and a fifth of the memory part.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import limner
from limner.geometry import Geometry
from limner.prompts import MaskPrompt

EVERY = 500  # frames between two lines
ENDS = 100  # frames that speed and Dice are measured on at either end
XMEM_EVERY, XMEM_FRAMES, XMEM_PROTOTYPES, XMEM_TOP = 5, 7, 10_000, 30
XMEM_SIDE = 480


class Film:
    """A video that is never all there.

    Args:
        frames: how many.
        size: rows and columns.
        objects: blobs.
    """

    def __init__(self, frames: int, size: int, objects: int) -> None:
        from scipy import ndimage

        self.frames, self.size, self.objects = frames, size, objects
        rng = np.random.default_rng(0)
        ground = ndimage.gaussian_filter(rng.normal(size=(2 * size, 2 * size)), 3, mode="wrap")
        self._ground = (90 + 25 * ground / ground.std()).astype(np.float32)
        inside = ndimage.gaussian_filter(rng.normal(size=(size, size)), 2, mode="wrap")
        self._inside = (135 + 20 * inside / inside.std()).astype(np.float32)
        self._phases = rng.uniform(0, 2 * np.pi, (objects, 6))
        self._grid = np.mgrid[:size, :size].astype(np.float32)

    def mask(self, frame: int, number: int) -> NDArray[np.bool_]:
        """Where blob `number` is: a circle with three and five bumps, which turns and swells."""
        _, _, c, d, e, f = self._phases[number]
        row, column = self._middle(frame, number)
        down, right = self._grid[0] - row, self._grid[1] - column
        angle = np.arctan2(down, right) + frame / 61
        radius = 0.1 * self.size / np.sqrt(self.objects) * (1 + 0.2 * np.sin(frame / 37 + c))
        radius *= 1 + 0.15 * np.sin(3 * angle + d) * np.sin(frame / 47 + e)
        radius *= 1 + 0.08 * np.sin(5 * angle + f)
        return np.asarray(np.hypot(down, right) < radius)

    def _middle(self, frame: int, number: int) -> tuple[float, float]:
        """Row and column of a blob's middle."""
        a, b = self._phases[number][:2]
        away = number - (self.objects - 1) / 2
        row = 0.5 + (0.25 * np.sin(frame / 83 + a) + 0.9 * away) / self.objects
        column = 0.5 + 0.28 * np.sin(frame / 131 + b)
        return float(row * self.size), float(column * self.size)

    def plane(self, frame: int) -> NDArray[np.uint8]:
        """The pixels of a frame."""
        shift = [round(0.5 * self.size * (1 + np.sin(frame / n))) for n in (211.0, 173.0)]
        rows, columns = ((np.arange(self.size) + s) % (2 * self.size) for s in shift)
        picture = self._ground[np.ix_(rows, columns)].copy()
        for number in range(self.objects):
            mask = self.mask(frame, number)
            at = [round(n) for n in self._middle(frame, number)]  # its texture goes along
            picture[mask] = np.roll(self._inside, at, axis=(0, 1))[mask]
        picture += np.random.default_rng(frame).normal(0, 4, picture.shape)
        return np.clip(picture, 0, 255).astype(np.uint8)

    def image(self) -> limner.Image:
        """The video as limner holds it."""

        def load() -> NDArray[np.uint8]:
            raise MemoryError("This video is not to be read as a whole.")

        geometry = Geometry.from_spacing((self.frames, self.size, self.size))
        return limner.Image(load, geometry, kind="video", dtype=np.uint8, read_slice=self.plane)


def resident() -> float:
    """MB (2^20) that this process holds; NaN where the system does not say so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def carry(film: Film, model: str, propagator: str | None, journal: Path | None) -> None:
    """Carry the blobs through the video, and tell how it goes."""
    began = resident()
    answers = (film.frames - 1) * film.objects
    scores: dict[str, list[float]] = {"first": [], "last": []}
    times: list[float] = []
    print("| frame | RSS MB | above start | frames/s since the line before |")
    print("| ---: | ---: | ---: | ---: |")
    with limner.open_session(film.image(), model, propagator=propagator, journal=journal) as one:
        for number in range(film.objects):
            one.add(MaskPrompt(film.mask(0, number)), object_id=number + 1, frame=0)
        told = time.perf_counter()
        since = 0
        for count, found in enumerate(one.propagate(direction="forward"), start=1):
            assert found.frame is not None
            times.append(time.perf_counter())
            end = "first" if found.frame <= ENDS else "last"
            if end == "first" or found.frame >= film.frames - ENDS:
                truth = film.mask(found.frame, found.object_id - 1)
                scores[end].append(limner.metrics.dice(found.mask, truth))
            if (found.frame % EVERY == 0 and count % film.objects == 0) or count == answers:
                now = time.perf_counter()
                rate = (found.frame - since) / (now - told)
                held = resident()
                print(
                    f"| {found.frame} | {held:.0f} | {held - began:.0f} | {rate:.1f} |", flush=True
                )
                told, since = now, found.frame
    own = make_frames(film)
    print()
    for name, part in (
        ("first", times[: ENDS * film.objects]),
        ("last", times[-ENDS * film.objects :]),
    ):
        rate = (len(part) - 1) / film.objects / (part[-1] - part[0]) if len(part) > 1 else np.nan
        dice = f"Dice {np.mean(scores[name]):.3f}" if scores[name] else "no answer"
        print(f"{name} {ENDS} frames: {rate:.1f} frames/s, {dice}.")
    print(f"Making a frame takes {own * 1e3:.1f} ms of each; it is in these numbers.\n")


def make_frames(film: Film, count: int = 20) -> float:
    """Seconds to make a frame and to say where its blobs are."""
    began = time.perf_counter()
    for frame in range(count):
        film.slice_at(frame)
    return (time.perf_counter() - began) / count


def xmem(film: Film, rounds: int) -> None:
    """Milliseconds of a step of XMem in eager PyTorch, part by part."""
    import torch

    from limner.models.xmem.network import FrameEncoder, MaskDecoder, MemoryEncoder, XMemNetwork

    torch.manual_seed(0)
    network = XMemNetwork().eval().requires_grad_(False)
    print(f"XMem, eager PyTorch {torch.__version__}, float32, {torch.get_num_threads()} threads, ")
    print(f"objects: {film.objects}, least of {rounds}, ms:\n")
    print("| size | frame | read | decoder | memory | per frame | frames/s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for side in sorted({XMEM_SIDE, film.size}, reverse=True):
        size = -(-side // 16) * 16
        n, grid = film.objects, size // 16
        picture = torch.randn(1, 3, size, size)
        frame, memory, decoder = FrameEncoder(network), MemoryEncoder(network), MaskDecoder(network)
        key, _, selection, f16, *shared = frame(picture)
        hidden, masks = torch.zeros(n, 64, grid, grid), torch.rand(n, 2, size, size)
        elements = XMEM_FRAMES * grid * grid + XMEM_PROTOTYPES
        keys, values = torch.randn(64, elements), torch.randn(n * 512, elements)
        shrinkage = 1 + torch.rand(elements)

        def read(
            key: torch.Tensor = key,
            selection: torch.Tensor = selection,
            known: tuple[torch.Tensor, ...] = (keys, shrinkage, values),
        ) -> torch.Tensor:
            return remembered(key.flatten(2)[0], selection.flatten(2)[0], *known)

        readout = read().reshape(n, 512, grid, grid)
        parts: list[Callable[[], object]] = [
            lambda f=frame, p=picture: f(p),
            read,
            lambda d=decoder, s=shared, r=readout, h=hidden: d(*s, r, h),
            lambda m=memory, p=picture, f=f16, a=masks, h=hidden: m(p, f, a, h),
        ]
        spent = [least_ms(part, rounds) for part in parts]
        step = sum(spent[:3]) + spent[3] / XMEM_EVERY
        cells = " | ".join(f"{ms:.0f}" for ms in (*spent, step))
        print(f"| {side}×{side} | {cells} | {1000 / step:.2f} |", flush=True)
    print()


def remembered(key, selection, keys, shrinkage, values):  # type: ignore[no-untyped-def]
    """What memory says of each pixel of a frame: the nearest elements' values, by a softmax."""
    import torch

    near = 2 * keys.T @ (key * selection) - keys.T.square() @ selection
    near = (near - (selection * key.square()).sum(0)) * shrinkage[:, None] / keys.shape[0] ** 0.5
    best, where = near.topk(XMEM_TOP, dim=0)
    affinity = torch.zeros_like(near).scatter_(0, where, best.softmax(dim=0))
    return values @ affinity


def least_ms(step: Callable[[], object], rounds: int) -> float:
    """Least milliseconds of a step after one that does not count: other work on the machine only
    adds to it.
    """
    step()
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        spent.append(time.perf_counter() - began)
    return min(spent) * 1e3


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="limner-seq")
    parser.add_argument("--propagator", default=None)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--xmem", type=int, default=5, help="rounds; 0 leaves XMem out")
    parser.add_argument("--journal", type=Path, default=None)
    asked = parser.parse_args()
    film = Film(asked.frames, asked.size, asked.objects)
    who = asked.model if asked.propagator is None else f"{asked.model} and {asked.propagator}"
    print(f"{who}: {film.frames} frames of {film.size}×{film.size}, objects: {film.objects}\n")
    carry(film, asked.model, asked.propagator, asked.journal)
    if asked.xmem:
        xmem(film, asked.xmem)


if __name__ == "__main__":
    main()
