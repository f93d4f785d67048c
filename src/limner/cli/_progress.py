"""How far work is that takes a while: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_LINE_S, LINE_S = 10.0, 30.0  # after so long, and then so often, a line in a log


@contextmanager
def bar(title: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
    """Show on stderr how far it is while the block runs; the block tells how much of how many.

    On a terminal that is a bar, which goes when the block ends. Elsewhere, as in the log of a batch
    job, it is a line now and then; nothing at all where the work is quick.

    Args:
        title: what is done, a few words.
        unit: what is counted, such as ``"frames"``; then how many a second is shown, too.
    """
    from rich.console import Console

    console = Console(stderr=True, emoji=False)
    if not console.is_terminal:
        yield _Lines(title, unit)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(title, total=None, speed="")

        def tell(done: int, total: int) -> None:
            speed = _speed(done, time.monotonic() - began, unit)
            shown.update(task, completed=done, total=total, speed=speed)

        yield tell


@contextmanager
def waiting(title: str) -> Iterator[None]:
    """Say what is done while the block runs, where nobody can tell how far it is.

    On a terminal at once, elsewhere in one line, if it takes long.
    """
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, emoji=False)
    if console.is_terminal:
        with console.status(escape(title)):
            yield
        return
    line = threading.Timer(FIRST_LINE_S, print, [f"{title} …"], {"file": sys.stderr, "flush": True})
    line.daemon = True
    line.start()
    try:
        yield
    finally:
        line.cancel()


class _Lines:
    """Writes a line now and then."""

    def __init__(self, title: str, unit: str) -> None:
        self._title, self._unit = title, unit
        self._began = time.monotonic()
        self._next = self._began + FIRST_LINE_S

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LINE_S
        passed = now - self._began
        parts = [f"{done} of {total} {self._unit}".rstrip()]
        if self._unit:
            parts.append(_speed(done, passed, self._unit))
        if done:
            parts.append(f"{_clock(passed * max(0, total - done) / done)} left")
        print(f"{self._title}: {', '.join(parts)}", file=sys.stderr, flush=True)


def _speed(done: int, seconds: float, unit: str) -> str:
    if not unit or not done or seconds <= 0:
        return ""
    speed = done / seconds
    return f"{speed:.1f} {unit}/s" if speed >= 0.1 else f"{seconds / done:.0f} s a {unit[:-1]}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
