"""The way of one click through the code: how deep, through which functions and files.

Run: python benchmarks/click_path.py [--model limner-2d]. A 2D session is warm (one click was
answered), a second click is added, and `session.predict` is traced. Only limner's own functions
count. "To the paint" are the calls that are open when the click's pixels are set: the way that a
reader follows from `predict` down.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np

import limner
from limner.prompts.painting import paint_ball

PACKAGE = Path(limner.__file__).parent


@dataclass
class ClickPath:
    """What was called.

    Attributes:
        to_paint: the open calls when the click was painted, as ``file: function``, outermost first.
        calls: number of calls.
        depth: most calls open at a time.
        functions: distinct ones.
    """

    to_paint: list[str] = field(default_factory=list)
    calls: int = 0
    depth: int = 0
    functions: set[CodeType] = field(default_factory=set)

    @property
    def files_to_paint(self) -> set[str]:
        """Files on the way to the paint."""
        return {step.split(":")[0] for step in self.to_paint}

    @property
    def files(self) -> set[str]:
        """All files."""
        return {code.co_filename for code in self.functions}

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """A profile function for `sys.setprofile`."""
        if event != "call" or not _is_ours(frame):
            return
        self.calls += 1
        self.functions.add(frame.f_code)
        opened: list[FrameType] = []
        caller: FrameType | None = frame
        while caller is not None:
            if _is_ours(caller):
                opened.append(caller)
            caller = caller.f_back
        self.depth = max(self.depth, len(opened))
        if frame.f_code is paint_ball.__code__ and not self.to_paint:
            self.to_paint = [_name(f) for f in reversed(opened)]


def trace_click(model: str = "limner-2d", *, warm: bool = True) -> ClickPath:
    """Trace the answer to a click in a noisy image with a bright rectangle.

    Args:
        model: that answers.
        warm: an earlier click was answered.
    """
    pixels = np.random.default_rng(0).normal(size=(256, 256))
    pixels[100:150, 100:160] += 4
    found = ClickPath()
    with limner.open_session(pixels, model) as session:
        if warm:
            session.add(limner.Click((120, 120)))
            session.predict()
        session.add(limner.Click((140, 150)))
        sys.setprofile(found.note)
        try:
            session.predict()
        finally:
            sys.setprofile(None)
    return found


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(str(PACKAGE))


def _name(frame: FrameType) -> str:
    file = Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix()
    return f"{file}: {frame.f_code.co_name}"


def main() -> None:
    """Print the way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="limner-2d")
    found = trace_click(parser.parse_args().model)
    print("\n".join(found.to_paint))
    print(f"to the paint: {len(found.to_paint)} calls deep, {len(found.files_to_paint)} files")
    print(
        f"whole answer: {found.calls} calls, {found.depth} deep, {len(found.functions)} functions, "
        f"{len(found.files)} files"
    )


if __name__ == "__main__":
    main()
