"""Counters and quantiles against their definitions, and the event file."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gossamer.engine.metrics import EventLog, Histogram, StepClock


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0.01, 1.0))
def test_histogram_quantile_is_the_smallest_that_covers(values: list[int], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    result = histogram.quantile(q)
    assert sum(v <= result for v in values) >= q * len(values)
    assert all(sum(v <= x for v in values) < q * len(values) for x in values if x < result)


def test_histogram_of_nothing_is_zero() -> None:
    assert Histogram().quantile(0.5) == 0


def test_step_clock_counts_steps_after_a_moment() -> None:
    clock = StepClock(window=4)
    for now in range(1, 20):
        clock.tick(float(now))
    assert clock.steps_since(19.0) == 0
    assert clock.steps_since(16.5) == 3
    assert clock.median_seconds() == 1.0


def test_event_log_writes_one_json_object_per_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "peer-0")
    assert log.progress_due() and not log.progress_due()
    log.write("metric", val_loss=float("nan"), nested={"x": float("inf")}, text='a "b"\n')
    log.close()
    (line,) = (tmp_path / "peer-0" / "events.jsonl").read_text().splitlines()
    event = json.loads(line)
    assert event["event"] == "metric" and event["val_loss"] is None
    assert event["nested"] == {"x": None} and event["text"] == 'a "b"\n'


def test_event_log_without_a_directory_does_nothing() -> None:
    log = EventLog(None)
    log.write("metric")
    assert not log.progress_due()
