"""Starts the peers of a plan, watches them, and sees that all of them end."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from gossamer.engine.cli.display import Display
from gossamer.engine.cli.plan import Plan
from gossamer.engine.cli.process import PeerProcess
from gossamer.engine.cli.table import Row, settings_text

TICK_SECONDS = 0.05
# Shares of peer_timeout after Ctrl-C; all peers have ended before it is over.
TERMINATE_AFTER, KILL_AFTER = 0.5, 0.9
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs the peers of one plan to their end.

    peers:       the processes, after `run`
    interrupted: the signal that ended the run early, or None
    seconds:     wall time
    """

    def __init__(self, plan: Plan, display: Display) -> None:
        self._plan, self._display = plan, display
        self.peers: list[PeerProcess] = []
        self.interrupted: signal.Signals | None = None
        self.seconds = 0.0
        self._signals_seen = 0
        self._stage = 0
        self._interrupted_at = 0.0
        self._ended: set[str] = set()
        self._settings_said = False

    def run(self) -> None:
        """Start the peers and return when the last has ended."""
        began = time.monotonic()
        with ExitStack() as stack:
            stack.enter_context(self._signals_caught())
            for number, peer in enumerate(self._plan.environments):
                process = PeerProcess(self._plan, peer, shown=number == 0)
                stack.callback(process.close)
                self.peers.append(process)
            with self._display:
                while any(peer.alive for peer in self.peers):
                    self._look()
                    self._escalate()
                    time.sleep(TICK_SECONDS)
                self.seconds = time.monotonic() - began
                self._look()
                self._display.update(self._rows(), last=True)

    def _look(self) -> None:
        """Take in and show what the peers have said and done since the last look."""
        for peer in self.peers:
            for line in peer.output():
                self._display.say(line)
            for event in peer.history.read():
                if event.get("event") == "warning":
                    self._display.say(f"{peer.id}: {event.get('message')}", "yellow")
            start = peer.history.start
            if start and not self._settings_said:
                self._settings_said = True
                self._display.say(settings_text(start), "dim")
            if peer.exit is not None and peer.id not in self._ended:
                self._ended.add(peer.id)
                self._note_end(peer)
        self._display.update(self._rows())

    def _note_end(self, peer: PeerProcess) -> None:
        if not peer.failed or self.interrupted is not None:
            return
        others = [other for other in self.peers if other.alive]
        if peer is self.peers[0] and not self._plan.rendezvous.exists():
            # The others would wait for it in vain.
            for other in others:
                other.ask_to_end(signal.SIGTERM)
        elif others:
            self._display.say(f"{peer.id} {peer.exit}; the others go on", "red")

    def _rows(self) -> list[Row]:
        return [Row.of(peer.history, peer.exit) for peer in self.peers]

    # -- ending early

    def _escalate(self) -> None:
        """After an interruption: SIGINT at once, later SIGTERM, then SIGKILL; each signal once."""
        if self.interrupted is None:
            return
        timeout = max(
            [p.history.start.get("peer_timeout") or self._plan.peer_timeout for p in self.peers]
        )
        elapsed = time.monotonic() - self._interrupted_at
        stage = 1 + (elapsed > TERMINATE_AFTER * timeout) + (elapsed > KILL_AFTER * timeout)
        if self._signals_seen > 1:
            stage = 3
        if stage == self._stage:
            return
        self._stage = stage
        for peer in self.peers:
            match stage:
                case 1:
                    peer.ask_to_end(signal.SIGINT)
                case 2:
                    peer.ask_to_end(signal.SIGTERM)
                case _:
                    peer.kill()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals_seen += 1
        if self.interrupted is None:
            self.interrupted = signal.Signals(number)
            self._interrupted_at = time.monotonic()

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
