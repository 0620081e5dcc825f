"""What is measured, and where it goes: quantiles, and one JSON object per line in a file."""

import json
import math
import time
from bisect import bisect_right
from collections import Counter, deque
from pathlib import Path
from typing import IO

PROGRESS_INTERVAL_SECONDS = 0.25


class EventLog:
    """`events.jsonl` of one peer; nothing is written when there is no run directory."""

    def __init__(self, directory: Path | None) -> None:
        self._file: IO[str] | None = None
        self._progress_at = -math.inf
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "events.jsonl").open("a", encoding="utf-8", buffering=1)

    def write(self, event: str, **fields: object) -> None:
        if self._file is not None:
            line = {"time": round(time.time(), 3), "event": event, **fields}
            self._file.write(json.dumps(_finite(line), separators=(",", ":")) + "\n")

    def progress_due(self) -> bool:
        """True at most every 0.25 s, and never without a file."""
        now = time.monotonic()
        if self._file is None or now - self._progress_at < PROGRESS_INTERVAL_SECONDS:
            return False
        self._progress_at = now
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class StepClock:
    """When the recent steps ended; turns ages into staleness in own steps."""

    def __init__(self, window: int = 4096) -> None:
        self._ends: list[float] = []
        self._window = window
        self._durations: deque[float] = deque(maxlen=window)

    def tick(self, now: float) -> None:
        if self._ends:
            self._durations.append(now - self._ends[-1])
        self._ends.append(now)
        if len(self._ends) >= 2 * self._window:
            del self._ends[: self._window]

    def steps_since(self, moment: float) -> int:
        """Own steps that ended after a moment."""
        return len(self._ends) - bisect_right(self._ends, moment)

    def median_seconds(self) -> float:
        ordered = sorted(self._durations)
        return ordered[len(ordered) // 2] if ordered else 0.0


class Histogram:
    """Counts of small integers, with quantiles."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, value: int) -> None:
        self._counts[value] += 1

    def quantile(self, fraction: float) -> int:
        """The smallest value that at least this fraction of the values do not exceed; 0 if none."""
        rank = fraction * self._counts.total()
        seen = 0
        for value in sorted(self._counts):
            seen += self._counts[value]
            if seen >= rank:
                return value
        return 0


def _finite(value: object) -> object:
    """JSON has no NaN: non-finite numbers become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value
