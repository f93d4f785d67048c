"""Weights and images of the golden cases, as pure functions of names and whole numbers.

The published implementations ran once with these weights (tests/golden/README.md), so a test needs
neither a weights file nor the authors' code. One 64-bit word of PCG64, seeded with the hash of the
name, gives one variate: the centred sum of its four 16-bit fields. Sums are whole numbers, so the
values are the same on every platform.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Spec = dict[str, Any]

_FIELD = np.uint64(0xFFFF)
_MEAN = 2 * 0xFFFF  # of the sum of four fields
_DEVIATION = math.sqrt(4 * (65536.0**2 - 1.0) / 12.0)
_AT_ONCE = 1 << 22  # words
_SAMPLES = 2048  # that a case stores of a large tensor, at most twice as many


def _stream(name: str) -> np.random.PCG64:
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return np.random.PCG64(int.from_bytes(digest[:16], "little"))


def normal(
    name: str, shape: Sequence[int], mean: float = 0.0, std: float = 1.0, *, positive: bool = False
) -> NDArray[np.float32]:
    """Nearly normal values, float32: ``mean + std * n``, or ``mean + std * |n|`` if `positive`."""
    size = math.prod(shape)
    values = np.empty(size, np.float32)
    stream = _stream(name)
    factor, offset = np.float32(std / _DEVIATION), np.float32(mean)
    for start in range(0, size, _AT_ONCE):
        words = stream.random_raw(min(_AT_ONCE, size - start))
        total = (words & _FIELD).astype(np.int32) - _MEAN
        for shift in (16, 32, 48):
            total += ((words >> np.uint64(shift)) & _FIELD).astype(np.int32)
        part = np.abs(total) if positive else total
        values[start : start + part.size] = part.astype(np.float32) * factor + offset
    return values.reshape(tuple(shape))


def integers(name: str, count: int, low: int, high: int) -> NDArray[np.int64]:
    """Whole numbers in ``low <= n < high``."""
    words = _stream(name).random_raw(count)
    return np.asarray((words % np.uint64(high - low)).astype(np.int64) + low)


def load_spec(path: Path) -> Spec:
    """Names, shapes, rules and container of a published file, in its order."""
    spec: Spec = json.loads(path.read_text(encoding="utf-8"))
    return spec


def fill(keys: Mapping[str, Mapping[str, Any]]) -> dict[str, Array]:
    """All tensors of a ``keys`` table by their published names."""
    return {name: _tensor(name, entry) for name, entry in keys.items()}


def _tensor(name: str, entry: Mapping[str, Any]) -> Array:
    shape, (kind, *numbers) = tuple(entry["shape"]), entry["rule"]
    if kind in ("normal", "abs"):
        value: Array = normal(name, shape, *numbers, positive=kind == "abs")
    elif kind == "arange":
        value = np.arange(math.prod(shape))
    elif kind == "const":
        value = np.full(shape, numbers[0])
    else:
        raise ValueError(f"Unknown rule {kind!r} for {name}.")
    return np.ascontiguousarray(value.astype(entry["dtype"], copy=False)).reshape(shape)


def digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and bytes: ``digest`` of a spec if the rule is right."""
    total = hashlib.sha256()
    for name, value in weights.items():
        total.update(f"{name}|{value.dtype.name}|{list(value.shape)}|".encode())
        little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
        total.update(little.tobytes())
    return total.hexdigest()


def write_checkpoint(path: Path, spec: Spec, weights: Mapping[str, Array] | None = None) -> Path:
    """A file in the published container, or bare tensors for ``.safetensors``.

    Args:
        path: to be written.
        spec: of `load_spec`. Its ``container`` says under which name the tensors lie (``wrap``),
            what is put before every name (``prefix``), what lies beside (``extra``) and whether an
            ``optimizer`` does: ``state`` or, as some authors save it, a live ``object``.
        weights: by published names; None for those of the rule.
    """
    import torch

    made = fill(spec["keys"]) if weights is None else weights
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(dict(made), path)
        return path
    box = spec.get("container", {})
    tensors = {box.get("prefix", "") + k: torch.from_numpy(np.array(v)) for k, v in made.items()}
    content: dict[str, Any] = dict(tensors)
    if box.get("wrap"):
        content = {box["wrap"]: tensors, **box.get("extra", {})}
        kind = box.get("optimizer", "none")
        if kind != "none":
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
            content["optimizer"] = optimizer if kind == "object" else optimizer.state_dict()
    torch.save(content, path)
    return path


def phantom(
    seed: str, shape: Sequence[int], blobs: int = 7, noise: int = 14
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image of any dimension and its labels: a ramp, overlapping ellipsoids, noise; blob ``b``
    has label ``b + 1`` and lies over earlier ones.
    """
    shape = tuple(int(n) for n in shape)
    grids = np.ogrid[tuple(slice(n) for n in shape)]
    image = np.full(shape, 40, np.int64)
    for axis, (grid, size) in enumerate(zip(grids, shape, strict=True)):
        image = image + grid * (30 + 10 * axis) // size
    labels = np.zeros(shape, np.uint8)
    count = 2 * len(shape) + 1
    draws = integers(f"phantom/{seed}/blobs", blobs * count, 0, 1 << 30).reshape(blobs, count)
    for number, draw in enumerate(draws.tolist(), start=1):
        inside = np.zeros(shape, np.int64)
        for axis, (grid, size) in enumerate(zip(grids, shape, strict=True)):
            centre = size // 6 + draw[2 * axis] % max(1, size * 2 // 3)
            radius = max(2, size // 12) + draw[2 * axis + 1] % max(1, size // 6)
            inside = inside + (grid - centre) ** 2 * 4096 // radius**2
        image[inside <= 4096] = 60 + draw[-1] % 180
        labels[inside <= 4096] = number
    grain = integers(f"phantom/{seed}/noise", math.prod(shape), 0, 2 * noise + 1)
    image = image + grain.reshape(shape) - noise
    return np.clip(image, 0, 255).astype(np.uint8), labels


def phantom_rgb(seed: str, shape: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A colour image (row, column, 3) and its labels; channels share shapes, not contrast."""
    grey, labels = phantom(seed, shape)
    red = grey.astype(np.int64)
    blue, _ = phantom(f"{seed}/b", shape, blobs=3)
    channels = [red, (red * 3 // 5 + 255 - red // 2) // 2, blue.astype(np.int64)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8), labels


def phantom_video(
    seed: str, frames: int, shape: Sequence[int], blobs: int = 7
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A video (frame, row, column, 3) and its labels: each blob drifts and breathes."""
    h, w = (int(n) for n in shape)
    rows, columns = np.ogrid[:h, :w]
    draws = integers(f"video/{seed}", blobs * 8, 0, 1 << 30).reshape(blobs, 8).tolist()
    video, labels = np.zeros((frames, h, w, 3), np.uint8), np.zeros((frames, h, w), np.uint8)
    for t in range(frames):
        ramp = (columns * 40 // w + rows * 30 // h)[..., None]
        frame = np.full((h, w, 3), 50, np.int64) + ramp
        for number, d in enumerate(draws, start=1):
            row = h // 5 + d[0] % (h * 3 // 5) + (d[1] % 7 - 3) * t * h // 200
            column = w // 5 + d[2] % (w * 3 // 5) + (d[3] % 7 - 3) * t * w // 200
            tall = max(3, h // 8 + d[4] % (h // 7) + (d[5] % 5 - 2) * t * h // 400)
            wide = max(3, w // 8 + d[6] % (w // 7) + (d[5] % 3 - 1) * t * w // 400)
            far = (rows - row) ** 2 * 4096 // tall**2 + (columns - column) ** 2 * 4096 // wide**2
            frame[far <= 4096] = [60 + (d[7] >> shift) % 180 for shift in (0, 8, 16)]
            labels[t][far <= 4096] = number
        grain = integers(f"video/{seed}/{t}", h * w * 3, 0, 17).reshape(h, w, 3) - 8
        video[t] = np.clip(frame + grain, 0, 255).astype(np.uint8)
    return video, labels


def sample_step(size: int) -> int:
    """Which values of a flattened tensor a case stores; odd, so that all axes are walked."""
    return max(1, size // _SAMPLES) | 1


def compare(value: Array, case: Mapping[str, Any], name: str) -> dict[str, float]:
    """Errors of a tensor against the entries ``NAME.sub``, ``.stat`` and ``.shape`` of a case.

    Returns:
        ``max``: the largest absolute error of the samples; ``rel``: that over the golden standard
        deviation; ``stat``: the largest error of mean, deviation and largest magnitude, likewise.
    """
    if tuple(np.shape(value)) != tuple(case[f"{name}.shape"]):
        raise ValueError(f"{name}: shape {np.shape(value)} instead of {case[f'{name}.shape']}")
    flat = np.asarray(value, np.float64).ravel()
    golden = case[f"{name}.stat"]
    std = float(golden[1]) or 1.0
    samples = flat[:: sample_step(flat.size)].astype(np.float32).astype(np.float64)
    worst = float(np.abs(samples - case[f"{name}.sub"]).max())
    found = np.array([flat.mean(), flat.std(), np.abs(flat).max()])
    return {"max": worst, "rel": worst / std, "stat": float(np.abs(found - golden).max()) / std}


def unpack_mask(case: Mapping[str, Any], name: str) -> NDArray[np.bool_]:
    """A mask stored as packed bits."""
    shape = tuple(int(n) for n in case[f"{name}.shape"])
    bits = np.unpackbits(case[f"{name}.bits"], count=math.prod(shape))
    return bits.reshape(shape).astype(bool)
