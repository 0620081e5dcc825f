import json
from pathlib import Path

import pytest

from gossamer.engine.summary import PeerHistory, Summary, summarize, write

START = {
    "peer": "peer-0",
    "run": "r",
    "algorithm": "sparse-averaging",
    "topology": "ring",
    "compress": "1/64:2bit",
}
FINISH = {
    "id": "peer-0",
    "steps": 3,
    "loss_first": 2.0,
    "loss_last": 1.0,
    "bytes_sent": 10,
    "bytes_received": 20,
    "bytes_dense": 3000,
    "updates_applied": 4,
    "base_digest": "00ff",
    "consensus_distance": 0.5,
    "staleness_p50": 1,
    "staleness_p99": 2,
    "step_seconds_p50": 0.01,
    "exit": "finished",
}


def progress(step: int, loss: float | None, state: str = "training") -> dict[str, object]:
    counts = {"bytes_sent": 7, "bytes_received": 8, "bytes_dense": 9, "updates_applied": 1}
    return {"step": step, "total_steps": 9, "loss": loss, "staleness": 1, "state": state, **counts}


def line(event: str, fields: dict[str, object]) -> str:
    return json.dumps({"time": 1.0, "event": event, **fields}) + "\n"


def events_of(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.jsonl"
    with path.open("a") as file:
        file.write("".join(lines))
    return path


def test_summary_has_the_documented_keys(tmp_path: Path) -> None:
    events_of(
        tmp_path / "peer-0",
        line("start", START),
        line("metric", {"val_loss": 1.5}),
        line("finish", FINISH),
    )
    summary = summarize(tmp_path, {"peer-0": "finished"}, seconds=2.0)
    write(summary, tmp_path / "summary.json")
    written = json.loads((tmp_path / "summary.json").read_text())
    head = {
        "schema": 1,
        "run": "r",
        "algorithm": "sparse-averaging",
        "topology": "ring",
        "compress": "1/64:2bit",
        "seconds": 2.0,
        "val_loss": 1.5,
        "peers": [FINISH],
    }
    assert written == head
    assert list(written) == list(head)
    assert list(written["peers"][0]) == list(FINISH)


def test_summary_of_a_dead_peer_says_what_its_last_progress_said(tmp_path: Path) -> None:
    events_of(
        tmp_path / "peer-1",
        line("progress", progress(0, None)),
        line("progress", progress(1, 3.0)),
        line("progress", progress(5, 2.5)),
    )
    peer = summarize(tmp_path, {"peer-1": "killed (SIGKILL)"}, seconds=1.0).peers[0]
    assert (peer.id, peer.exit, peer.steps) == ("peer-1", "killed (SIGKILL)", 5)
    assert (peer.loss_first, peer.loss_last) == (3.0, 2.5)
    assert (peer.bytes_sent, peer.bytes_received, peer.bytes_dense) == (7, 8, 9)
    assert (peer.base_digest, peer.consensus_distance, peer.staleness_p99) == (None, None, None)


def test_summary_of_a_peer_that_wrote_nothing_is_zero(tmp_path: Path) -> None:
    summary = summarize(tmp_path, {"peer-0": "failed (status 2)"}, seconds=1.0)
    assert summary.val_loss is None
    assert (summary.peers[0].steps, summary.peers[0].base_digest) == (0, None)


def test_val_loss_is_the_mean_of_the_peers_that_recorded_one(tmp_path: Path) -> None:
    events_of(tmp_path / "a", line("metric", {"val_loss": 9.0}), line("metric", {"val_loss": 1.0}))
    events_of(tmp_path / "b", line("metric", {"val_loss": 2.0}))
    events_of(tmp_path / "c", line("metric", {"val_loss": None}))
    assert summarize(tmp_path, dict.fromkeys("abc", "finished"), seconds=1).val_loss == 1.5


@pytest.mark.parametrize(
    ("digests", "agree"),
    [(["a", "a"], True), (["a", "b"], False), (["a", None], False), ([None, None], False)],
)
def test_digests_agree_only_when_all_are_known_and_equal(
    tmp_path: Path, digests: list[str | None], agree: bool
) -> None:
    for number, digest in enumerate(digests):
        events_of(tmp_path / f"peer-{number}", line("finish", FINISH | {"base_digest": digest}))
    exits = {f"peer-{number}": "finished" for number in range(len(digests))}
    assert summarize(tmp_path, exits, seconds=1.0).digests_agree is agree


def test_digests_of_peers_that_died_do_not_count(tmp_path: Path) -> None:
    events_of(tmp_path / "peer-0", line("finish", FINISH))
    exits = {"peer-0": "finished", "peer-1": "killed (SIGKILL)"}
    assert summarize(tmp_path, exits, seconds=1.0).digests_agree


def test_history_reads_each_event_once_and_waits_for_whole_lines(tmp_path: Path) -> None:
    history = PeerHistory(tmp_path / "peer-0")
    assert history.read() == []
    first, second = line("progress", progress(1, 1.0)), line("progress", progress(2, 1.0))
    events_of(tmp_path / "peer-0", first, second[:20])
    assert [event["step"] for event in history.read()] == [1]
    assert history.read() == []
    events_of(tmp_path / "peer-0", second[20:])
    assert [event["step"] for event in history.read()] == [2]
    assert history.progress["step"] == 2


@pytest.mark.parametrize("garbage", ["not json\n", "[1, 2]\n", "\x00\x00\n", '{"event": {}}\n'])
def test_history_passes_over_lines_that_are_no_events(tmp_path: Path, garbage: str) -> None:
    events_of(tmp_path / "peer-0", garbage, line("progress", progress(4, 1.0)))
    history = PeerHistory(tmp_path / "peer-0")
    history.read()
    assert history.progress["step"] == 4


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("x" * 100_000)
    write(summarize(tmp_path, {}, seconds=1.0), path)
    assert json.loads(path.read_text())["peers"] == []
    assert list(tmp_path.iterdir()) == [path]


def test_summary_is_empty_without_peers(tmp_path: Path) -> None:
    summary = summarize(tmp_path, {}, seconds=0.0)
    assert isinstance(summary, Summary)
    assert (summary.run, summary.digests_agree) == (tmp_path.name, False)
