"""A viewer's session: its volume, the object that it works on, and the mask that it was shown.

Viewers' protocols know one object at a time and interactions of their own; this maps them to a
durable session. Arrays have three axes in the viewer's own order; an image of one slice is held as
a 2D image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.errors import PromptError
from limner.geometry import Geometry
from limner.io.image import Kind
from limner.prompts import Box, Click, Lasso, MaskPrompt
from limner.prompts.convert import fit_box, scribbles_from_mask
from limner.prompts.types import Prompt
from limner.server.case_store import VoxelFacts
from limner.server.service import Service
from limner.server.session_store import LiveSession

Mask = NDArray[np.bool_]
Bounds = list[list[int]]

_MOST_DRAWN = 200_000  # pixels of one stroke
_MOST_CORNERS = 400  # of a lasso


class ViewerSession:
    """One viewer at work. Made by `open_viewer_session`.

    Attributes:
        session_id: of the durable session.
        shape: of the volume.
        mask: that the viewer was shown last.
        object_id: that prompts are about.
    """

    def __init__(self, service: Service, session_id: str, shape: Sequence[int]) -> None:
        self.session_id = session_id
        self.shape = tuple(shape)
        self.mask: Mask = np.zeros(self.shape, dtype=np.bool_)
        self.object_id = 1
        self._service = service
        self._steps: list[int] = []  # prompts of each interaction, for undo
        self._flat = self.shape[0] == 1

    # -- interactions -------------------------------------------------------------------------

    async def add(self, prompts: Sequence[Prompt]) -> None:
        """Add the prompts of one interaction, all or none."""

        def work(live: LiveSession) -> None:
            for verb in (live.session.check_prompt, live.session.add):
                for prompt in prompts:
                    verb(prompt, object_id=self.object_id)

        await self._service.run(self.session_id, work)
        if prompts:
            self._steps.append(len(prompts))

    async def predict(self) -> Bounds | None:
        """Answer the object's prompts; returns where `mask` has changed."""
        return self._show(await self._predicted())

    async def undo(self) -> tuple[bool, Bounds | None]:
        """Take back the last interaction; whether there was one, and where `mask` has changed."""
        if not self._steps:
            return False, None
        count = self._steps.pop()

        def work(live: LiveSession) -> None:
            for _ in range(count):
                live.session.undo(object_id=self.object_id)

        await self._service.run(self.session_id, work)
        return True, self._show(await self._predicted())

    async def start_object(self) -> None:
        """Go on with another object, as a viewer does that forgets its interactions. Those of the
        object before stay in the session.
        """
        self._steps.clear()
        self.mask = np.zeros(self.shape, dtype=np.bool_)

        def highest(live: LiveSession) -> int:
            return max(live.session.object_ids, default=0)

        self.object_id = await self._service.run(self.session_id, highest) + 1

    def show(self, mask: Mask) -> None:
        """Note a mask that the viewer has by itself."""
        self.mask = np.array(mask, dtype=np.bool_)

    # -- prompts in the viewer's coordinates ---------------------------------------------------

    def click(self, at: Sequence[float], *, positive: bool) -> list[Prompt]:
        """A click at rounded coordinates inside the volume."""
        index = np.clip(np.rint(_finite(at, 3)), 0, np.asarray(self.shape) - 1)
        return [Click(tuple(self._kept(index)), positive=positive)]

    def box(self, bounds: Sequence[Sequence[float]], *, positive: bool) -> list[Prompt]:
        """A half-open box as ``[low, high]`` per axis, at least one voxel thick."""
        if len(bounds) != 3 or any(len(pair) != 2 for pair in bounds):
            raise PromptError("A box is [low, high] for each of three axes.")
        low, high = (_finite([pair[k] for pair in bounds], 3) for k in (0, 1))
        found = fit_box(low, high, self.shape)
        kept = Box(tuple(self._kept(found.low)), tuple(self._kept(found.high)))
        if positive:
            return [kept]
        centre = [(a + b - 1) / 2 for a, b in zip(kept.low, kept.high, strict=True)]
        return [Click(tuple(centre), positive=False)]

    def stroke(self, drawn: NDArray[Any], low: Sequence[int], *, positive: bool) -> list[Prompt]:
        """Drawn voxels, of a part of the volume that begins at `low`."""
        mask = self._placed(drawn, low)
        count = int(np.count_nonzero(mask))
        if count > _MOST_DRAWN:
            raise PromptError(f"A stroke of {count} voxels; at most {_MOST_DRAWN} are read as one.")
        kept = mask[0] if self._flat else mask
        return list(scribbles_from_mask(kept, positive=positive))

    def lasso(self, drawn: NDArray[Any], low: Sequence[int], *, positive: bool) -> list[Prompt]:
        """A filled lasso on one slice; what lies in several, or excludes, is read as strokes."""
        mask = self._placed(drawn, low)
        found = _outline(mask) if positive else None
        if found is None:
            return self.stroke(drawn, low, positive=positive)
        return [Lasso([tuple(self._kept(point)) for point in found])]

    def rough(self, mask: NDArray[Any]) -> list[Prompt]:
        """A mask to start from; none where it is empty."""
        whole = self._placed(mask, (0, 0, 0))
        return [MaskPrompt(whole[0] if self._flat else whole)] if whole.any() else []

    # -- inside -------------------------------------------------------------------------------

    def _kept(self, index: Any) -> list[float]:
        """An index of the volume in the image of the session."""
        return [float(x) for x in index][1 if self._flat else 0 :]

    def _placed(self, part: NDArray[Any], low: Sequence[int]) -> Mask:
        high = [a + n for a, n in zip(low, part.shape, strict=True)]
        inside = all(a >= 0 and b <= n for a, b, n in zip(low, high, self.shape, strict=True))
        if part.ndim != 3 or not inside:
            raise PromptError(
                f"A mask of {list(part.shape)} at {list(low)} does not fit the image of "
                f"{list(self.shape)}."
            )
        whole = np.zeros(self.shape, dtype=np.bool_)
        whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = part != 0
        return whole

    async def _predicted(self) -> Mask:
        def work(live: LiveSession) -> Mask:
            session = live.session
            if self.object_id not in session.object_ids:
                return np.zeros(self.shape, dtype=np.bool_)
            return session.predict(object_id=self.object_id).mask.reshape(self.shape)

        same = ("viewer", self.object_id)
        return await self._service.run(self.session_id, work, heavy=True, same=same)

    def _show(self, mask: Mask) -> Bounds | None:
        bounds = changed_bounds(self.mask, mask)
        self.mask = mask
        return bounds


async def open_viewer_session(
    service: Service,
    array: NDArray[Any],
    spacing: Sequence[float] | None = None,
    *,
    geometry: Geometry | None = None,
    model: str | None = None,
    name: str = "",
) -> ViewerSession:
    """Keep a viewer's volume and open a session on it.

    Args:
        service: of the server.
        array: three axes, and perhaps channels last.
        spacing: millimetres, in the order of the axes.
        geometry: of the volume, where the viewer knows it; else from `spacing`.
        model: name; None for the default.
        name: of the session, for people.
    """
    shape = array.shape[:3]
    flat = shape[0] == 1
    grid = geometry or Geometry.from_spacing(shape, spacing or (1.0, 1.0, 1.0))
    pixels = np.ascontiguousarray(array[0] if flat else array)
    kind: Kind = "image" if flat else "volume"
    facts = VoxelFacts(
        grid.slice_at(0) if flat else grid,
        pixels.dtype.newbyteorder("<"),
        kind,
        pixels.shape[-1] if array.ndim == 4 else None,
        name=name,
    )

    def keep() -> str:
        folder = service.cases.new_upload()
        np.save(folder / "voxels.npy", pixels.astype(facts.dtype, copy=False))
        return service.cases.keep_voxels(folder, facts).id

    case = await service.in_thread(keep)
    record = await service.create(case=case, model=model, keep_masks=True, name=name)
    return ViewerSession(service, record.id, shape)


def changed_bounds(before: Mask, after: Mask) -> Bounds | None:
    """``[low, high]`` per axis of where two masks differ; None where they do not."""
    differs = before != after
    bounds = []
    for axis in range(differs.ndim):
        others = tuple(k for k in range(differs.ndim) if k != axis)
        found = np.flatnonzero(differs.any(axis=others))
        if not found.size:
            return None
        bounds.append([int(found[0]), int(found[-1]) + 1])
    return bounds


def _outline(mask: Mask) -> list[tuple[float, ...]] | None:
    """Corners around the largest area of a mask that lies in one slice; None where it does not."""
    from skimage.measure import find_contours

    bounds = changed_bounds(np.zeros_like(mask), mask)
    thin = [k for k, (a, b) in enumerate(bounds or []) if b - a == 1]
    if bounds is None or not thin:
        return None
    axis, index = thin[0], bounds[thin[0]][0]
    area = np.pad(np.take(mask, index, axis=axis), 1).astype(np.uint8)
    lines = find_contours(area, 0.5)  # type: ignore[no-untyped-call]
    if not lines or len(longest := max(lines, key=len)) < 4:
        return None
    step = math.ceil(len(longest) / _MOST_CORNERS)
    corners = np.insert(longest[:-1:step] - 1, axis, index, axis=1)
    return [tuple(point) for point in corners.tolist()]


def _finite(values: Sequence[float], count: int) -> NDArray[np.float64]:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"A position is {count} numbers: {error}.") from error
    if found.shape != (count,) or not np.isfinite(found).all():
        raise PromptError(f"A position is {count} finite numbers.")
    return found
