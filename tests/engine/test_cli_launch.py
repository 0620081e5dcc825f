"""`gossamer launch` and `gossamer join`, with scripts that train nothing.

The peers are always processes. The command is one too where it is sent a signal or has a terminal.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gossamer.engine.cli import main

TIMEOUT_SECONDS = 40
COMMAND = [sys.executable, "-c", "from gossamer.engine.cli import main; main()"]
WHO = "import os, sys, time\npeer = os.environ['GOSSAMER_PEER']\n"
Start = Callable[..., "subprocess.Popen[str]"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command in an empty folder; kill it after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GOSSAMER_")}

    def begin(*args: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*COMMAND, *args],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()  # its peers follow it
        process.communicate()


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Run the command in this process and an empty folder: status, standard output and error."""
    for key in [key for key in os.environ if key.startswith("GOSSAMER_")]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gossamer", *args])
        with pytest.raises(SystemExit) as ending:
            main()
        return int(ending.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "train.py").write_text(WHO + text)
        return "train.py"

    return write


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, out, err


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def log_of(folder: Path, peer: str) -> str:
    path = folder / "out" / peer / "log.txt"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("peers", [1, 3])
def test_launch_runs_the_script_in_every_peer(
    call: Call, script: Callable[[str], str], tmp_path: Path, peers: int
) -> None:
    name = script("print(peer, sys.argv[1:])\nprint('aside', file=sys.stderr)\n")
    flags = ["-n", str(peers), "--run-dir", "out", "--json", "copy.json"]
    status, out, err = call("launch", *flags, name, "--json", "-n", "9", "--", "x y")
    assert status == 0
    assert "no peer trained" in err
    said = "['--json', '-n', '9', '--', 'x y']"
    assert f"peer-0 {said}" in out.splitlines()
    assert "aside" not in out
    for number in range(peers):
        log = log_of(tmp_path, f"peer-{number}")
        assert sorted(log.splitlines()) == sorted([f"peer-{number} {said}", "aside"])
    written = (tmp_path / "out" / "summary.json").read_bytes()
    assert written == (tmp_path / "copy.json").read_bytes()
    summary = json.loads(written)
    assert summary["schema"] == 1
    assert [(p["id"], p["exit"]) for p in summary["peers"]] == [
        (f"peer-{number}", "finished") for number in range(peers)
    ]


def test_failure_of_one_peer_is_passed_on_and_the_others_go_on(
    call: Call, script: Callable[[str], str], tmp_path: Path
) -> None:
    name = script(
        "open(os.environ['GOSSAMER_RENDEZVOUS'], 'a').close()\n"
        "if peer == 'peer-1':\n    raise ValueError('no data here')\n"
        "time.sleep(1)\nprint('done', peer)\n"
    )
    status, out, err = call("launch", "-n", "3", "--run-dir", "out", name)
    assert status == 1
    assert "peer-1 failed (status 1); the others go on" in out
    assert "── peer-1 failed (status 1) ──" in err
    assert "line 5, in <module>" in err
    assert err.count("ValueError: no data here") == 1
    assert "runpy" not in err
    assert "done peer-0" in log_of(tmp_path, "peer-0")
    assert "done peer-2" in log_of(tmp_path, "peer-2")
    exits = [p["exit"] for p in json.loads((tmp_path / "out/summary.json").read_text())["peers"]]
    assert exits == ["finished", "failed (status 1)", "finished"]


def test_same_configuration_error_of_all_peers_is_said_once(
    call: Call, script: Callable[[str], str]
) -> None:
    name = script(
        "from gossamer.engine import ConfigurationError\n"
        "raise ConfigurationError('local_steps is -1')\n"
    )
    status, _, err = call("launch", "-n", "2", name)
    assert status == 2
    assert err == "gossamer: local_steps is -1\n"


def test_failure_of_the_first_peer_before_the_meeting_ends_the_launch(
    call: Call, script: Callable[[str], str]
) -> None:
    name = script(
        "from gossamer.engine import ConfigurationError\n"
        "if peer == 'peer-0':\n    raise ConfigurationError('port 7000 is in use')\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    status, _, err = call("launch", "-n", "3", name)
    assert status == 2
    assert err == "gossamer: port 7000 is in use\n"
    assert time.monotonic() - began < 30


def test_killed_peer_is_named_with_its_signal(
    call: Call, script: Callable[[str], str], tmp_path: Path
) -> None:
    name = script(
        "import signal\n"
        "open(os.environ['GOSSAMER_RENDEZVOUS'], 'a').close()\n"
        "if peer == 'peer-0':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    status, _, err = call("launch", "-n", "2", "--run-dir", "out", name)
    assert status == 1
    assert "── peer-0 killed (SIGKILL) ──" in err
    exits = [p["exit"] for p in json.loads((tmp_path / "out/summary.json").read_text())["peers"]]
    assert exits == ["killed (SIGKILL)", "finished"]


@pytest.mark.parametrize(("sign", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_peers_and_still_writes_the_summary(
    start: Start,
    script: Callable[[str], str],
    tmp_path: Path,
    sign: signal.Signals,
    expected: int,
) -> None:
    name = script("print('up')\ntime.sleep(60)\n")
    process = start("launch", "-n", "2", "--run-dir", "out", name)
    wait_until(lambda: all("up" in log_of(tmp_path, f"peer-{i}") for i in range(2)))
    began = time.monotonic()
    process.send_signal(sign)
    status, _, err = ended(process)
    assert status == expected
    assert time.monotonic() - began < 9
    assert err == f"gossamer: ended by {sign.name}\n"
    peers = json.loads((tmp_path / "out/summary.json").read_text())["peers"]
    assert [p["exit"] for p in peers] == ["interrupted", "interrupted"]


STUBBORN = (
    "import signal\n"
    "signal.signal(signal.SIGINT, lambda *_: print('no', flush=True))\n"
    "signal.signal(signal.SIGTERM, lambda *_: print('never', flush=True))\n"
    "print('up', flush=True)\n"
    "while True:\n    time.sleep(60)\n"
)


def test_peer_that_ignores_signals_is_killed_in_the_end(
    start: Start, script: Callable[[str], str], tmp_path: Path
) -> None:
    flags = ["-n", "1", "--peer-timeout-seconds", "3", "--run-dir", "out"]
    process = start("launch", *flags, script(STUBBORN))
    wait_until(lambda: "up" in log_of(tmp_path, "peer-0"))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, _, _ = ended(process)
    assert status == 130
    assert 1.5 < time.monotonic() - began < 10
    assert log_of(tmp_path, "peer-0").split() == ["up", "no", "never"]
    peers = json.loads((tmp_path / "out/summary.json").read_text())["peers"]
    assert [p["exit"] for p in peers] == ["killed (SIGKILL)"]


def test_second_interrupt_kills_at_once(
    start: Start, script: Callable[[str], str], tmp_path: Path
) -> None:
    flags = ["--peer-timeout-seconds", "600", "--run-dir", "out"]
    process = start("launch", *flags, script(STUBBORN))
    wait_until(lambda: "up" in log_of(tmp_path, "peer-0"))
    process.send_signal(signal.SIGINT)
    wait_until(lambda: "no" in log_of(tmp_path, "peer-0"))
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


def test_peers_do_not_outlive_a_killed_launcher(
    start: Start, script: Callable[[str], str], tmp_path: Path
) -> None:
    name = script("print('pid', os.getpid())\ntime.sleep(60)\n")
    process = start("launch", "-n", "2", "--run-dir", "out", name)
    pids: list[int] = []
    try:
        wait_until(lambda: all("pid" in log_of(tmp_path, f"peer-{i}") for i in range(2)))
        pids = [int(log_of(tmp_path, f"peer-{i}").split()[1]) for i in range(2)]
        process.kill()
        process.wait(timeout=TIMEOUT_SECONDS)
        wait_until(lambda: not any(_runs(pid) for pid in pids))
    finally:
        for pid in filter(_runs, pids):
            os.kill(pid, signal.SIGKILL)


def test_join_runs_one_peer_with_the_endpoint(
    call: Call, script: Callable[[str], str], tmp_path: Path
) -> None:
    name = script("print(os.environ['GOSSAMER_JOIN'], sys.argv[1:])\n")
    endpoint = "tcp://127.0.0.1:7000"
    status, out, _ = call("join", "--run-dir", "out", endpoint, name, "--lr", "3")
    assert status == 0
    assert f"{endpoint} ['--lr', '3']" in out.splitlines()
    assert len(list((tmp_path / "out").glob("peer-*"))) == 1


def test_terminal_shows_one_live_table(
    start: Start, script: Callable[[str], str], tmp_path: Path
) -> None:
    name = script(
        "import json, pathlib\n"
        "folder = pathlib.Path(os.environ['GOSSAMER_RUN_DIR'], peer)\n"
        "with open(folder / 'events.jsonl', 'w', buffering=1) as events:\n"
        "    for step in range(1, 11):\n"
        "        event = dict(time=time.time(), event='progress', step=step, total_steps=10,\n"
        "                     loss=2.5, bytes_sent=2_000_000, bytes_received=1, staleness=1,\n"
        "                     bytes_dense=300_000_000, updates_applied=step, state='training')\n"
        "        print(json.dumps(event), file=events)\n"
        "        time.sleep(0.15)\n"
        "print('said by', peer)\n"
    )
    ours, theirs = pty.openpty()
    try:
        process = start("launch", "-n", "2", name, stdout=theirs)
        os.close(theirs)
        shown = _read_terminal(ours)
        assert process.wait(timeout=TIMEOUT_SECONDS) == 0
    finally:
        os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"peer-1 +\d+/10 +2\.500 +2\.00 MB +150x +1 +training", plain)
    assert re.search(r"\d+ % +\d+ s left", plain)
    assert "said by peer-0" in plain
    assert "said by peer-1" not in plain
    assert re.search(r"peer-0 +10/10 +2\.500 +2\.00 MB +150x +1 +finished", plain)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["launch", "-n", "2", "nowhere.py"], "'nowhere.py'"),
        (["launch", "-n", "0", "train.py"], "-n is 0"),
        (["launch", "--topology", "star", "train.py"], "'star'"),
        (["launch", "--compress", "1/3", "train.py"], "'1/3'"),
        (["join", "nonsense", "train.py"], "'nonsense'"),
        (["launch", "-n", "two", "train.py"], "'-n'"),
        (["demo", "--steps", "0"], "--steps is 0"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    call: Call, script: Callable[[str], str], tmp_path: Path, args: list[str], named: str
) -> None:
    script("")
    status, out, err = call(*args)
    assert (status, out) == (2, "")
    assert named in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [[], ["launch"], ["join"], ["demo"]])
def test_help_has_an_example(call: Call, command: list[str]) -> None:
    status, out, err = call(*command, "--help")
    assert (status, err) == (0, "")
    assert re.search(rf"(Example|Begin with): gossamer {command[0] if command else 'demo'}", out)


def test_version_is_that_of_the_package(call: Call) -> None:
    status, out, _ = call("--version")
    assert status == 0
    assert re.fullmatch(r"gossamer \d+\.\d+\.\d+\n", out)


def _read_terminal(descriptor: int) -> str:
    data = b""
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # Linux answers so when the other side has closed
            break
        if not part:
            break
        data += part
    return data.decode()


def _runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
