"""The examples and the demo in short form, as a user starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gossamer.engine
from gossamer.engine.cli import main

EXAMPLES = Path(gossamer.engine.__file__).resolve().parent.parent / "examples"
TIMEOUT_SECONDS = 90
COMMAND = [sys.executable, "-c", "from gossamer.engine.cli import main; main()"]
Start = Callable[..., "subprocess.Popen[str]"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command in an empty folder; kill it after the test if it still runs."""
    started: list[subprocess.Popen[str]] = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GOSSAMER_")}

    def begin(*command: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
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


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, out, err


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


def summary_at(path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("charlm.py", ["--steps", "3"], "validation loss"),
        ("digits.py", ["--epochs", "1"], "test accuracy"),
    ],
)
def test_example_runs_under_plain_python(
    start: Start, tmp_path: Path, name: str, args: list[str], said: str
) -> None:
    status, out, err = ended(start(sys.executable, str(EXAMPLES / name), *args))
    assert (status, err) == (0, "")
    assert out.startswith(said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["charlm.py", "digits.py"])
def test_example_is_short_enough_to_read(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 120


def test_digits_are_learned_by_every_peer(call: Call, tmp_path: Path) -> None:
    flags = ["-n", "3", "--run-dir", "out", "--json", "s.json"]
    script = str(EXAMPLES / "digits.py")
    status, _, err = call("launch", *flags, script, "--epochs", "20")
    assert (status, err) == (0, "")
    summary = summary_at(tmp_path / "s.json")
    assert len({peer["base_digest"] for peer in summary["peers"]}) == 1
    for peer in summary["peers"]:
        assert peer["exit"] == "finished"
        events = (tmp_path / "out" / peer["id"] / "events.jsonl").read_text().splitlines()
        metrics = [event for event in map(json.loads, events) if event["event"] == "metric"]
        assert [event["test_accuracy"] > 0.95 for event in metrics] == [True]


def test_demo_compares_together_with_alone(call: Call, tmp_path: Path) -> None:
    flags = ["--peers", "2", "--steps", "40", "--run-dir", "out", "--json", "s.json"]
    status, out, err = call("demo", *flags)
    assert (status, err) == (0, "")
    summary = summary_at(tmp_path / "s.json")
    assert (summary["schema"], len(summary["peers"])) == (1, 2)
    assert (summary["topology"], summary["compress"]) == ("ring", "1/16:1bit")
    assert len({peer["base_digest"] for peer in summary["peers"]}) == 1
    assert [peer["steps"] for peer in summary["peers"]] == [40, 40]
    assert [peer["steps"] for peer in summary["alone"]["peers"]] == [40]
    lines = out.splitlines()
    shown = next(line for line in lines if line.startswith(" validation loss "))
    assert shown.split()[2:] == [f"{summary[key]:.3f}" for key in ["val_loss"]] + [
        f"{summary['alone']['val_loss']:.3f}"
    ]
    assert next(line for line in lines if "same bits" in line).split()[-2:] == ["yes", "-"]
    assert max(map(len, lines[-12:])) <= 100


def test_survivors_of_a_killed_peer_finish_and_agree(start: Start, tmp_path: Path) -> None:
    flags = ["-n", "3", "--peer-timeout-seconds", "3", "--run-dir", "out"]
    script = str(EXAMPLES / "charlm.py")
    process = start(*COMMAND, "launch", *flags, script, "--steps", "120")
    events = tmp_path / "out" / "peer-1" / "events.jsonl"
    pid, _, step = _under_way(events, process)
    assert step < 120
    os.kill(pid, signal.SIGKILL)
    status, _, err = ended(process)
    assert status == 1
    assert "── peer-1 killed (SIGKILL) ──" in err
    first, second, third = summary_at(tmp_path / "out" / "summary.json")["peers"]
    assert [first["exit"], third["exit"]] == ["finished", "finished"]
    assert [first["steps"], third["steps"]] == [120, 120]
    assert first["base_digest"] == third["base_digest"] is not None
    assert second["exit"] == "killed (SIGKILL)"
    assert second["base_digest"] is None
    assert 0 < second["steps"] < 120


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A script that takes 20 steps, counted from when it has company unless told otherwise."""
    (tmp_path / "small.py").write_text(
        "import sys, time\n"
        "import torch\n"
        "from gossamer.engine import Engine\n"
        "model = torch.nn.Linear(64, 64)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "steps, deadline = 0, time.monotonic() + 60\n"
        "with Engine(model, optimizer) as engine:\n"
        "    while steps < 20 and time.monotonic() < deadline:\n"
        "        optimizer.zero_grad()\n"
        "        loss = model(torch.randn(8, 64)).square().mean()\n"
        "        loss.backward()\n"
        "        engine.step(loss)\n"
        "        steps += 'at-once' in sys.argv or steps > 0 or engine.peers > 1\n"
        "        time.sleep(0.005)\n"
    )
    return "small.py"


def test_joined_peer_ends_with_the_same_bits(
    start: Start, call: Call, small: str, tmp_path: Path
) -> None:
    launched = start(*COMMAND, "launch", "--run-dir", "first", small)
    events = tmp_path / "first" / "peer-0" / "events.jsonl"
    _, endpoint, _ = _under_way(events, launched)
    status, _, err = call("join", "--run-dir", "second", endpoint, small, "at-once")
    assert (status, err) == (0, "")
    status, _, err = ended(launched)
    assert (status, err) == (0, "")
    first, second = (summary_at(tmp_path / run / "summary.json") for run in ("first", "second"))
    assert first["run"] == second["run"] == "first"
    mine, theirs = first["peers"][0], second["peers"][0]
    assert mine["base_digest"] == theirs["base_digest"] is not None
    assert mine["steps"] > theirs["steps"] == 20
    assert mine["updates_applied"] > 0
    assert theirs["updates_applied"] > 0


def test_join_where_nobody_answers_is_one_sentence(call: Call, small: str) -> None:
    status, _, err = call("join", "--peer-timeout-seconds", "1", "tcp://127.0.0.1:1", small)
    assert status == 1
    assert err.count("\n") == 1
    assert "no peer answered at tcp://127.0.0.1:1" in err


def test_port_in_use_is_one_sentence(call: Call, small: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bind = f"127.0.0.1:{server.getsockname()[1]}"
        status, _, err = call("launch", "-n", "2", "--bind", bind, small)
    assert status == 2
    assert err.count("\n") == 1
    assert bind in err
    assert "--bind" in err


def _under_way(events: Path, process: "subprocess.Popen[str]") -> tuple[int, str, int]:
    """Wait until a peer has taken ten steps: its process id, endpoint and step."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    known: dict[str, Any] = {}
    while known.get("step", 0) < 10:
        assert time.monotonic() < deadline, "the peer did not begin"
        assert process.poll() is None
        time.sleep(0.05)
        lines = events.read_text().splitlines(keepends=True) if events.exists() else []
        for line in lines:
            if line.endswith("\n"):
                known |= json.loads(line)
    return known["pid"], known["endpoint"], known["step"]
