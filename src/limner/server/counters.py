"""Prometheus metrics: requests by status, prediction times, and what the service holds now."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Counters:
    """Numbers that only grow, as Prometheus wants them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def count_request(self, method: str, status: int) -> None:
        """Count an answered request."""
        with self._lock:
            self._requests[method, status] += 1

    def observe_prediction(self, seconds: float) -> None:
        """Count a prediction and how long it took."""
        with self._lock:
            index = sum(seconds > bound for bound in _BOUNDS)
            self._buckets[index] += 1
            self._seconds += seconds

    def to_text(self, gauges: Mapping[str, float]) -> str:
        """All numbers in Prometheus' text format 0.0.4."""
        with self._lock:
            requests, buckets = dict(self._requests), list(self._buckets)
            seconds = self._seconds
        lines = ["# TYPE limner_requests_total counter"]
        for (method, status), count in sorted(requests.items()):
            lines.append(f'limner_requests_total{{method="{method}",status="{status}"}} {count}')
        lines.append("# TYPE limner_prediction_seconds histogram")
        total = 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
            total += count
            lines.append(f'limner_prediction_seconds_bucket{{le="{bound}"}} {total}')
        lines.append(f"limner_prediction_seconds_sum {seconds:.6f}")
        lines.append(f"limner_prediction_seconds_count {total}")
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE {name} {kind}", f"{name} {value:g}"]
        return "\n".join(lines) + "\n"
