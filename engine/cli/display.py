"""Where a run is shown: a live table in a terminal, plain lines anywhere else."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from gossamer.engine.cli.table import Row, live_view, peer_table

LIVE_INTERVAL_SECONDS = 0.25
PLAIN_INTERVAL_SECONDS = 5.0
PLAIN_WIDTH = 100


class Display(Protocol):
    """What shows the state of a run while it lasts, and its table at the end."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, line: str, style: str = "") -> None:
        """Show one line for good."""

    def update(self, rows: Sequence[Row], *, last: bool = False) -> None:
        """Show the state of the peers; seldom enough by itself, but always when it is the last."""


def display_on(console: Console) -> Display:
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def new_console() -> Console:
    """A console on standard output, wide enough for the table where there is no terminal to ask."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


class LiveDisplay:
    """One table that is drawn again and again, with a progress bar under it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._spinner = Spinner("dots")
        self._began = time.monotonic()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, line: str, style: str = "") -> None:
        text = Text.from_ansi(line)
        text.stylize(style)
        self._console.print(text, soft_wrap=True)

    def update(self, rows: Sequence[Row], *, last: bool = False) -> None:
        now = time.monotonic()
        if last:
            self._live.update(peer_table(rows), refresh=True)
        elif now - self._drawn >= LIVE_INTERVAL_SECONDS:
            self._drawn = now
            view = live_view(rows, self._spinner, now - self._began)
            self._live.update(view, refresh=True)


class PlainDisplay:
    """A line per peer every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def say(self, line: str, style: str = "") -> None:
        self._console.print(Text.from_ansi(line), soft_wrap=True)
        self._console.file.flush()

    def update(self, rows: Sequence[Row], *, last: bool = False) -> None:
        now = time.monotonic()
        if last:
            self._console.print(peer_table(rows))
        elif now - self._said >= PLAIN_INTERVAL_SECONDS:
            self._said = now
            for row in rows:
                peer, step, loss, sent, ratio, staleness, state = row.cells
                self.say(
                    f"{peer}  step {step}  loss {loss}  sent {sent}  ratio {ratio}  "
                    f"staleness {staleness}  {state}"
                )
