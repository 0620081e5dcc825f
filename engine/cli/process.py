"""One peer's process: its log, its output, and how it ended."""

import os
import signal
import subprocess
import sys

from gossamer.engine.cli.peer import (
    STATUS_BAD_CONFIGURATION,
    STATUS_FAILED,
    STATUS_INTERRUPTED,
    STATUS_TERMINATED,
)
from gossamer.engine.cli.plan import Plan
from gossamer.engine.summary import PeerHistory

FINISHED = "finished"
INTERRUPTED = "interrupted"
LOG_FILE = "log.txt"
LOG_TAIL_BYTES = 64 * 1024
LOG_TAIL_LINES = 60
READ_BYTES = 64 * 1024
_SENTENCE = "gossamer: "  # begins the last line of a peer that gave up with an error of ours


class PeerProcess:
    """A peer of a plan, from its start to its end.

    id:      the peer's id
    history: what its events have told so far
    shown:   whether its standard output is read through `output` as well as logged
    """

    def __init__(self, plan: Plan, id: str, *, shown: bool) -> None:
        self.id = id
        folder = plan.run_dir / id
        folder.mkdir(exist_ok=True)
        self.log = folder / LOG_FILE
        self.history = PeerHistory(folder)
        self._asked_to_end = False
        self._partial = b""
        command = [sys.executable, "-m", "gossamer.engine.cli.peer", str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(plan.script), *plan.args],
                env=dict(plan.environments[id]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if shown else log,
                stderr=log,
                # Ctrl-C in the terminal is for the launcher, which passes it on.
                start_new_session=True,
            )
        self._log = self.log.open("ab") if shown else None
        if self._process.stdout is not None:
            os.set_blocking(self._process.stdout.fileno(), False)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit(self) -> str | None:
        """How the process ended, in the words of `summary.json`; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        if status == 0:
            return FINISHED
        if status in (STATUS_INTERRUPTED, STATUS_TERMINATED):
            return INTERRUPTED
        if self._asked_to_end and status in (-signal.SIGINT, -signal.SIGTERM):
            return INTERRUPTED
        if status < 0:
            return f"killed ({signal.Signals(-status).name})"
        return f"failed (status {status})"

    @property
    def misconfigured(self) -> bool:
        return self._process.poll() == STATUS_BAD_CONFIGURATION

    @property
    def failed(self) -> bool:
        """Whether the process ended by anything but success or our own asking."""
        exit_ = self.exit
        return exit_ not in (None, FINISHED) and not (self._asked_to_end and exit_ == INTERRUPTED)

    def output(self) -> list[str]:
        """The lines written to standard output since the last call; also appended to the log."""
        pipe = self._process.stdout
        if pipe is None or self._log is None:
            return []
        while data := _read(pipe.fileno()):
            self._log.write(data)
            self._partial += data
        self._log.flush()
        *lines, self._partial = self._partial.split(b"\n")
        if self._partial and not self.alive:
            lines, self._partial = [*lines, self._partial], b""
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def complaint(self) -> str:
        """The end of the log: one sentence for an error of ours, else from its traceback on."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        if lines and lines[-1].startswith(_SENTENCE):
            return lines[-1]
        first = next((i for i, line in enumerate(lines) if line.startswith("Traceback")), 0)
        return "\n".join(lines[first:])

    @staticmethod
    def is_sentence(complaint: str) -> bool:
        return complaint.startswith(_SENTENCE)

    def ask_to_end(self, sign: signal.Signals) -> None:
        """Send SIGINT or SIGTERM; what follows from it counts as interrupted, not as failed."""
        if self.alive:
            self._asked_to_end = True
            self._process.send_signal(sign)

    def kill(self) -> None:
        """SIGKILL for the process and what it has started."""
        if self.alive:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Kill the process if it still runs, and give back its files."""
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._log is not None:
            self._log.close()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, READ_BYTES)
    except BlockingIOError:
        return b""


def status_of(peers: list[PeerProcess]) -> int:
    """The exit status for a command that ran these peers."""
    failed = [peer for peer in peers if peer.failed]
    if not failed:
        return 0
    return STATUS_BAD_CONFIGURATION if all(p.misconfigured for p in failed) else STATUS_FAILED
