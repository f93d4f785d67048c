"""The most memory that a step needed, where the operating system tells."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # as proc(5) has it


class PeakMemory:
    """Memory of this process above what it held when a conversation began.

    Only Linux lets a process forget its last peak; elsewhere nothing is known.
    """

    def __init__(self) -> None:
        self._base = _kilobytes("VmRSS")
        self._most: float | None = None

    def begin(self) -> None:
        """Forget the peak so far: a step begins."""
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            self._base = None

    def end(self) -> None:
        """A step ends."""
        peak = _kilobytes("VmHWM")
        if peak is not None and self._base is not None:
            self._most = max(self._most or 0.0, (peak - self._base) / 1024)

    @property
    def megabytes(self) -> float | None:
        """The most of all steps (2^20 bytes); None where it is not known."""
        return None if self._most is None else round(max(0.0, self._most), 1)


def resident_mb() -> float | None:
    """Memory that this process holds now (2^20 bytes); None where it is not known."""
    held = _kilobytes("VmRSS")
    return None if held is None else held / 1024


def _kilobytes(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) if found else None
