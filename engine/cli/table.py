"""What the command line draws: numbers with units, the table of peers, the progress line."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from gossamer.engine.summary import PeerHistory

UNKNOWN = "-"
BAR_COLUMNS = 46
_STYLES = {
    "starting": "dim",
    "joining": "yellow",
    "waiting": "yellow",
    "training": "cyan",
    "draining": "blue",
    "finished": "green",
    "interrupted": "yellow",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One peer as the table shows it.

    share: of its steps that are done, 0 to 1; None when it did not say how many there will be
    left:  seconds until the last step, at the mean speed so far
    """

    peer: str
    step: int
    total_steps: int | None
    loss: float | None
    bytes_sent: int
    bytes_dense: int
    staleness: int | None
    state: str
    share: float | None
    left: float | None

    @classmethod
    def of(cls, history: PeerHistory, exit_: str | None, *, now: float | None = None) -> "Row":
        """What a peer's events say; `exit_` as in `summary.json`, None while it runs."""
        last = history.progress
        step, total = int(last.get("step", 0)), last.get("total_steps")
        since = history.training_since
        share = min(1.0, step / total) if total else None
        left = None
        if total and step and since is not None and exit_ is None:
            elapsed = (time.time() if now is None else now) - since
            left = max(0.0, elapsed * (total - step) / step)
        return cls(
            peer=history.id,
            step=step,
            total_steps=total,
            loss=last.get("loss"),
            bytes_sent=int(last.get("bytes_sent", 0)),
            bytes_dense=int(last.get("bytes_dense", 0)),
            staleness=last.get("staleness"),
            state=exit_ or last.get("state") or "starting",
            share=share,
            left=left,
        )

    @property
    def cells(self) -> tuple[str, str, str, str, str, str, str]:
        steps = f"{self.step}/{self.total_steps}" if self.total_steps else f"{self.step}"
        return (
            self.peer,
            steps,
            UNKNOWN if self.loss is None else f"{self.loss:.3f}",
            bytes_text(self.bytes_sent),
            ratio_text(self.bytes_dense, self.bytes_sent),
            UNKNOWN if self.staleness is None else f"{self.staleness}",
            self.state,
        )


def bytes_text(count: float) -> str:
    """A size in decimal units with three digits: 999 B, 1.23 MB, 45.6 GB."""
    if count < 1000:
        return f"{count:.0f} B"
    units = iter(("kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    count /= 1000
    while count >= 999.5 and (larger := next(units, None)):
        count, unit = count / 1000, larger
    digits = max(0, 2 - int(math.log10(count)))
    return f"{count:.{digits}f} {unit}"


def ratio_text(dense: float, sent: float) -> str:
    """How many times fewer bytes than dense; unknown for a peer that was always alone."""
    return f"{dense / sent:.0f}x" if dense and sent else UNKNOWN


def duration_text(seconds: float) -> str:
    """12 s, 3:05 min, 1:02:03 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} h"


def settings_text(start: dict[str, object]) -> str:
    """The resolved settings in a peer's start event, in one line."""
    steps = start.get("local_steps")
    every = "every step" if steps == 1 else f"every {steps} steps"
    parameters = start.get("parameters")
    size = f"{parameters:,} parameters" if isinstance(parameters, int) else "model"
    return f"{size}, {start.get('topology')}, {start.get('compress')} {every}"


def peer_table(rows: Sequence[Row], *, caption: str = "") -> Table:
    """One line per peer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    table.add_column("peer", no_wrap=True)
    for name in ("step", "loss", "sent", "ratio", "staleness"):
        table.add_column(name, justify="right", no_wrap=True, min_width=6)
    table.add_column("state", min_width=11, no_wrap=True)
    for row in rows:
        *numbers, state = row.cells
        style = "bold red" if state.startswith(("failed", "killed")) else _STYLES.get(state, "")
        table.add_row(*numbers, Text(state, style))
    return table


def progress_line(rows: Sequence[Row], spinner: Spinner, elapsed: float) -> RenderableType:
    """A bar with percentage and time left; a spinner where no peer knows its number of steps."""
    line = Table.grid(padding=(0, 2))
    known = [row.share for row in rows if row.share is not None]
    if not known:
        line.add_row(spinner, Text(duration_text(elapsed), "dim"))
        return line
    done = sum(known) / len(rows)
    lefts = [row.left for row in rows if row.left is not None]
    text = f"{duration_text(max(lefts))} left" if lefts else duration_text(elapsed)
    line.add_row(
        ProgressBar(total=1.0, completed=done, width=BAR_COLUMNS),
        Text(f"{100 * done:3.0f} %"),
        Text(text, "dim"),
    )
    return line


def live_view(rows: Sequence[Row], spinner: Spinner, elapsed: float) -> RenderableType:
    return Group(peer_table(rows), progress_line(rows, spinner, elapsed))
