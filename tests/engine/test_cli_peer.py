"""The runner that the launcher starts for each peer, as a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TIMEOUT_SECONDS = 30
Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a script under the runner; kill it after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str, *args: str, parent: int | None = None) -> "subprocess.Popen[str]":
        script = tmp_path / "train.py"
        script.write_text(text)
        command = [sys.executable, "-m", "gossamer.engine.cli.peer", str(parent or os.getpid())]
        process = subprocess.Popen(
            [*command, str(script), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, out, err


def test_script_sees_what_it_would_see_without_the_runner(run: Run, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("name = 'beside the script'")
    text = "import sys, neighbour; print(__name__, sys.argv[1:], sys.path[0], neighbour.name)"
    status, out, err = ended(run(text, "--lr", "-n", "--", "x y"))
    assert (status, err) == (0, "")
    assert out == f"__main__ ['--lr', '-n', '--', 'x y'] {tmp_path} beside the script\n"


def test_traceback_has_only_the_frames_of_the_script(run: Run, tmp_path: Path) -> None:
    text = "def train():\n    raise ValueError('no data')\ntrain()\n"
    status, out, err = ended(run(text))
    script = tmp_path / "train.py"
    assert (status, out) == (1, "")
    assert err.startswith(f'Traceback (most recent call last):\n  File "{script}", line 3')
    assert err.endswith("ValueError: no data\n")
    assert err.count('File "') == 2


def test_syntax_error_is_shown_without_the_runner(run: Run) -> None:
    status, _, err = ended(run("def train(:\n"))
    assert status == 1
    assert "SyntaxError" in err
    assert "runpy" not in err


@pytest.mark.parametrize(("kind", "expected"), [("ConfigurationError", 2), ("JoinError", 1)])
def test_error_of_gossamer_is_one_sentence(run: Run, kind: str, expected: int) -> None:
    text = f"from gossamer.engine import {kind}\nraise {kind}('port 7 is in use')\n"
    assert ended(run(text)) == (expected, "", "gossamer: port 7 is in use\n")


def test_exit_status_of_the_script_is_kept(run: Run) -> None:
    assert ended(run("import sys; sys.exit(5)"))[0] == 5


@pytest.mark.parametrize(("sign", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_unwind_the_script_and_end_it_quietly(
    run: Run, sign: signal.Signals, expected: int
) -> None:
    text = (
        "import time\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "finally:\n    print('unwound')\n"
    )
    process = run(text)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sign)
    assert ended(process) == (expected, "unwound\n", "")


def test_peer_does_not_begin_when_its_launcher_is_already_dead(run: Run) -> None:
    assert ended(run("print('begun')", parent=1 << 30)) == (143, "", "")


def test_peer_ends_when_its_launcher_is_killed(tmp_path: Path) -> None:
    script, pid_file = tmp_path / "train.py", tmp_path / "pid"
    script.write_text(
        f"import os, pathlib, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()) + ' ')\n"
        f"time.sleep(60)\n"
    )
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys\n"
            "command = [sys.executable, '-m', 'gossamer.engine.cli.peer', str(os.getpid())]\n"
            f"subprocess.run([*command, {str(script)!r}])\n",
        ]
    )
    try:
        _wait(lambda: pid_file.exists() and pid_file.read_text().endswith(" "))
        pid = int(pid_file.read_text())
        launcher.kill()
        launcher.wait(timeout=TIMEOUT_SECONDS)
        _wait(lambda: not _runs(pid))
    finally:
        launcher.kill()
        launcher.wait()
        if pid_file.exists() and _runs(int(pid_file.read_text())):
            os.kill(int(pid_file.read_text()), signal.SIGKILL)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
