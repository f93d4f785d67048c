"""Film of a propagation: each frame with its objects, a score track and a playhead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from limner.adapters.intensity import robust_limits
from limner.colors import Color, color_of
from limner.errors import FormatError
from limner.io.image import Image
from limner.io.inversion import invert_for_display, invert_window
from limner.io.labels import Labels
from limner.io.reoriented import Reoriented, labels_as_stored
from limner.io.video.encode import MOST_GIF_FRAMES, write_film
from limner.prompts.types import MaskPrompt, Prompt
from limner.render.panel import (
    BACKDROP,
    INK,
    NEGATIVE,
    POSITIVE,
    Panel,
    Pixels,
    draw_panel,
    draw_text,
    font,
    to_rgb,
)
from limner.render.reformat import Reformat

Array = NDArray[Any]

LARGEST, LARGEST_GIF = 1024, 560  # pixels of the longer side of a frame
NO_RATE = 10.0  # frames a second where the file does not say, and slices of a volume
_LINE, _TRACK, _PAD = 22, 18, 8  # pixels of the strip below the frame
_SAMPLED = 8  # frames, for the limits of black and white
_DIM: Color = (92, 98, 108)
_REVIEW: Color = (230, 159, 0)
_MOST_NAMED = 6  # objects in the strip


@dataclass(frozen=True)
class FrameTimeline:
    """Per-frame facts of a propagation besides its masks: scores, annotations, damage.

    Attributes:
        scores: by frame, of the object that is least sure there.
        annotated: frames that the user annotated.
        to_review: frames to look at.
        unreadable: frames that are damaged.
        prompts: 2D, by frame.
        frames: to show; None for all.
    """

    scores: Mapping[int, float] = field(default_factory=dict)
    annotated: frozenset[int] = frozenset()
    to_review: frozenset[int] = frozenset()
    unreadable: frozenset[int] = frozenset()
    prompts: Mapping[int, Sequence[Prompt]] = field(default_factory=dict)
    frames: range | None = None


def write_timeline_film(
    path: Path,
    image: Image,
    labels: Labels,
    timeline: FrameTimeline,
    *,
    window: tuple[float, float] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a video or the slices of a volume with its objects as .mp4 or .gif, frame by frame.

    A volume is shown in radiological orientation. A .gif shows at most `MOST_GIF_FRAMES` of the
    frames, evenly spread, at the speed of the whole.

    Args:
        path: its suffix is the format.
        image: what was delineated.
        labels: on its grid.
        timeline: scores by frame, annotated frames, frames to review.
        window: intensities for black and white; robust limits if None.
        progress: called with the number of frames drawn and their number.
    """
    frames = timeline.frames or range(image.geometry.shape[0])
    chosen, count = np.asarray(frames), len(frames)
    small = path.suffix.lower() == ".gif"
    if small and count > MOST_GIF_FRAMES:
        spread = np.linspace(0, count - 1, MOST_GIF_FRAMES)
        chosen = chosen[np.unique(np.rint(spread).astype(int))]
    renderer = _FrameRenderer(image, labels, timeline, window, LARGEST_GIF if small else LARGEST)

    def frames_drawn() -> Iterator[Pixels]:
        for done, k in enumerate(chosen.tolist(), start=1):
            yield renderer.render(k)
            if progress is not None:
                progress(done, len(chosen))

    write_film(path, frames_drawn(), rate=frame_rate(image) * len(chosen) / count)


def frame_rate(image: Image) -> float:
    """Frames a second, as the file says; 10 where it does not, and for slices."""
    facts = image.metadata
    rate = float(facts.get("frames_per_second") or 0)
    if not rate and facts.get("frame_time_ms"):
        rate = 1000.0 / float(facts["frame_time_ms"])
    return rate if image.kind == "video" and np.isfinite(rate) and rate > 0 else NO_RATE


class _FrameRenderer:
    """Draws frames of one size."""

    def __init__(
        self,
        image: Image,
        labels: Labels,
        timeline: FrameTimeline,
        window: tuple[float, float] | None,
        largest: int,
    ) -> None:
        window, image = invert_window(image, window), invert_for_display(image)
        self._image, self._timeline, self._labels = image, timeline, labels.to_array()
        self._frames = timeline.frames or range(image.geometry.shape[0])
        self._names = {i: labels.name(i) for i in labels.ids}
        self._limits = _limits(image, window)
        self._reformat: Reformat | None = None
        self._finest = min(image.spacing[1:])  # millimetres; as large as a pixel of the rendering
        size = np.multiply(image.geometry.shape[1:], image.spacing[1:]) / self._finest
        if image.kind == "volume":
            stored, axis = (
                (image.stored, image.axis) if isinstance(image, Reoriented) else (image, 0)
            )
            if isinstance(image, Reoriented):
                self._labels = labels_as_stored(labels, image).to_array()
            self._reformat = Reformat(stored, axis)
            size = np.asarray(self._reformat.size_mm) / self._finest
        longest = float(size.max())
        # By whole numbers up, so that pixels stay square; by anything down.
        scale = largest / longest if longest > largest else float(largest // int(np.ceil(longest)))
        height, width = (int(n) for n in np.maximum(1, np.rint(size * scale)))
        self._size, self._scale = (height, width), scale
        self._width = max(240, self._size[1])
        self._track = self._draw_track()

    def render(self, index: int) -> Pixels:
        """Render one frame with badge, legend and track."""
        canvas = Pillow.new("RGB", (self._width, self._size[0] + _LINE + _TRACK + _PAD), BACKDROP)
        canvas.paste(self._draw_frame(index), ((self._width - self._size[1]) // 2, 0))
        canvas.paste(self._track, (0, self._size[0] + _LINE))
        draw = ImageDraw.Draw(canvas)
        self._badge(draw, index)
        self._legend(draw, index)
        x, top = self._track_position(index), self._size[0] + _LINE
        draw.rectangle([x - 1, top - 2, x + 1, top + _TRACK], fill=(255, 255, 255))
        return np.asarray(canvas)

    def _draw_frame(self, index: int) -> Pillow.Image:
        panel = self._panel(index)
        prompts = [
            p
            for p in self._timeline.prompts.get(index, ())
            if p.num_axes == 2 and not isinstance(p, MaskPrompt)
        ]
        if self._reformat is not None:
            return draw_panel(panel, prompts, to_display=self._reformat.map_points)
        return draw_panel(panel, prompts)

    def _panel(self, index: int) -> Panel:
        image, reformat = self._image, self._reformat
        title = f"{'frame' if reformat is None else reformat.name} {index}"
        mm = self._finest / self._scale if image.geometry.has_spacing else None
        if reformat is None:
            return Panel(self._pixels(index), self._labels[index], self._size, mm, title)
        pixels = to_rgb(reformat.to_display(image.slice_at(index)), 2, self._limits)
        flat = np.ascontiguousarray(
            reformat.to_display(self._labels.take(index, axis=reformat.axis))
        )
        return Panel(pixels, flat, self._size, mm, title, reformat.edges)

    def _pixels(self, index: int) -> Pixels:
        try:
            return to_rgb(self._image.slice_at(index), 2, self._limits)
        except FormatError:  # its place stays, black
            return np.zeros((*self._image.geometry.shape[1:], 3), dtype=np.uint8)

    def _badge(self, draw: ImageDraw.ImageDraw, index: int) -> None:
        """What sets a frame apart, in the upper right corner."""
        label, color = "", INK
        if index in self._timeline.unreadable:
            label, color = "cannot be read", NEGATIVE
        elif index in self._timeline.annotated:
            label, color = "annotated", POSITIVE
        elif index in self._timeline.to_review:
            label, color = "look here", _REVIEW
        if not label:
            return
        right, length = self._width - 6, font(14).getlength(label)
        draw.ellipse([right - length - 16, 8, right - length - 6, 18], fill=color, outline=0)
        draw_text(draw, (right, 4), label, anchor="ra")

    def _legend(self, draw: ImageDraw.ImageDraw, index: int) -> None:
        """The objects there are, dim where they are not on this frame."""
        labels = self._labels.take(index, axis=self._reformat.axis if self._reformat else 0)
        here = {int(k) for k in np.flatnonzero(np.bincount(labels.ravel()))}
        x, middle = _PAD, self._size[0] + _LINE // 2
        for object_id, name in list(self._names.items())[:_MOST_NAMED]:
            needed = 20 + int(font(13).getlength(name)) + 14
            if x + needed > self._width:
                break
            color = color_of(object_id) if object_id in here else _DIM
            draw.rectangle([x, middle - 5, x + 10, middle + 5], fill=color)
            draw_text(draw, (x + 16, middle), name, anchor="lm", size=13)
            x += needed

    def _track_position(self, index: int) -> int:
        """Column of a frame on the score track."""
        frames = self._frames
        way = (index - frames.start) / max(1, len(frames) - 1)
        return _PAD + round((self._width - 2 * _PAD - 1) * way)

    def _draw_track(self) -> Pillow.Image:
        """Draw the score track; annotated and unreadable frames are drawn full height."""
        track = Pillow.new("RGB", (self._width, _TRACK + _PAD), BACKDROP)
        draw = ImageDraw.Draw(track)
        draw.line([_PAD, _TRACK - 1, self._width - _PAD, _TRACK - 1], fill=_DIM)
        step = (self._width - 2 * _PAD) / len(self._frames)
        half = max(0.0, (step - 1) / 2)
        for color, tall, frames in self._bars():
            for k in (k for k in frames if k in self._frames):
                x = self._track_position(k)
                high = (_TRACK - 3) * (1.0 if tall else self._timeline.scores.get(k, 0.0))
                draw.rectangle([x - half, _TRACK - 2 - high, x + half, _TRACK - 2], fill=color)
        return track

    def _bars(self) -> Iterator[tuple[Color, bool, Sequence[int]]]:
        timeline = self._timeline
        yield _DIM, False, sorted(timeline.scores)
        yield _REVIEW, False, sorted(timeline.to_review & timeline.scores.keys())
        yield NEGATIVE, True, sorted(timeline.unreadable)
        yield POSITIVE, True, sorted(timeline.annotated)


def _limits(image: Image, window: tuple[float, float] | None) -> tuple[float, float]:
    """Black and white, the same on all frames: else it would flicker."""
    if window is not None:
        return window
    if image.dtype == np.uint8 and (image.num_channels or 1) >= 3:
        return 0.0, 255.0
    seen = []
    for k in sorted(set(np.linspace(0, image.geometry.shape[0] - 1, _SAMPLED).astype(int))):
        try:
            seen.append(image.slice_at(int(k)))
        except FormatError:
            continue
    return robust_limits(np.stack(seen)) if seen else (0.0, 255.0)
