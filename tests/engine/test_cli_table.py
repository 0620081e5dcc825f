import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.spinner import Spinner

from gossamer.engine.cli.table import (
    UNKNOWN,
    Row,
    bytes_text,
    duration_text,
    live_view,
    peer_table,
    ratio_text,
)
from gossamer.engine.summary import PeerHistory


def row(**fields: object) -> Row:
    values: dict[str, object] = {
        "peer": "peer-0",
        "step": 10,
        "total_steps": 40,
        "loss": 2.34567,
        "bytes_sent": 1_234_567,
        "bytes_dense": 250_000_000,
        "staleness": 1,
        "state": "training",
        "share": 0.25,
        "left": 30.0,
    }
    return Row(**(values | fields))  # type: ignore[arg-type]


def drawn(*renderables: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    for renderable in renderables:
        console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_234_567, "1.23 MB"),
        (45_600_000_000, "45.6 GB"),
        (7e18, "7000 PB"),
    ],
)
def test_bytes_have_units_and_three_digits(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (3723, "1:02:03 h")],
)
def test_durations_have_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_ratio_of_a_peer_that_was_alone_is_unknown() -> None:
    assert ratio_text(1000, 5) == "200x"
    assert ratio_text(0, 5) == ratio_text(5, 0) == UNKNOWN


def test_row_of_a_peer_that_has_said_nothing_is_starting(tmp_path: Path) -> None:
    cells = Row.of(PeerHistory(tmp_path / "peer-3"), None).cells
    assert cells == ("peer-3", "0", UNKNOWN, "0 B", UNKNOWN, UNKNOWN, "starting")


def test_row_estimates_the_time_left_from_the_mean_speed(tmp_path: Path) -> None:
    history = PeerHistory(tmp_path / "peer-0")
    history.progress = {"step": 10, "total_steps": 40, "state": "training"}
    history.training_since = 1000.0
    assert Row.of(history, None, now=1020.0).left == pytest.approx(60.0)
    assert Row.of(history, "finished", now=1020.0).left is None


def test_row_of_an_ended_peer_shows_how_it_ended(tmp_path: Path) -> None:
    history = PeerHistory(tmp_path / "peer-0")
    history.progress = {"step": 10, "state": "training"}
    assert Row.of(history, "killed (SIGKILL)").state == "killed (SIGKILL)"


def test_table_fits_100_columns_with_large_numbers() -> None:
    large = row(
        peer="peer-a1b2c3",
        step=10_000_000,
        total_steps=10_000_000,
        loss=12345.678,
        staleness=12345,
        state="failed (status 255)",
    )
    text = drawn(live_view([large] * 3, Spinner("dots"), 1.0), width=100)
    for value in ("peer-a1b2c3", "10000000/10000000", "12345.678", "failed (status 255)", "203x"):
        assert text.count(value) == 3
    assert max(len(line) for line in text.splitlines()) <= 100


def test_numbers_are_aligned_on_the_right() -> None:
    lines = drawn(peer_table([row(bytes_sent=5), row(bytes_sent=123_456_789)])).splitlines()
    first, second = (line for line in lines if "peer-0" in line)
    assert first.index("5 B") + len("5 B") == second.index("123 MB") + len("123 MB")


def test_progress_shows_percentage_and_the_longest_time_left() -> None:
    text = drawn(live_view([row(), row(share=0.75, left=65.0)], Spinner("dots"), 1.0))
    assert " 50 %" in text
    assert "1:05 min left" in text


def test_progress_without_known_steps_shows_the_time_so_far() -> None:
    rows = [row(total_steps=None, share=None, left=None)]
    text = drawn(live_view(rows, Spinner("dots"), 75.0))
    assert "1:15 min" in text
    assert "%" not in text


def test_live_view_is_drawn_within_a_refresh_interval() -> None:
    began = time.perf_counter()
    for _ in range(10):
        drawn(live_view([row()] * 16, Spinner("dots"), 1.0))
    assert (time.perf_counter() - began) / 10 < 0.25
