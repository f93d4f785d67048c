"""Readers on mutated files of every kind: errors of limner's own, in bounded time and memory."""

from __future__ import annotations

import sys

import pytest

from fuzzing import run
from rounds import ROUNDS, times


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured with /proc")
def test_no_mutated_file_is_a_traceback_a_hang_or_a_flood() -> None:
    report = run(times(150), seed=ROUNDS)
    assert report.inputs == times(150)
    assert 0 < report.accepted < report.inputs  # some are harmless, most are refused
    assert not report.faults, "\n".join(report.faults.values())
