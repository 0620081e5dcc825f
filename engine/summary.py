"""What a run came to: `events.jsonl` of every peer folded into one `summary.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

SCHEMA = 1
EVENTS_FILE = "events.jsonl"
SUMMARY_FILE = "summary.json"
LOST = "lost"  # a peer that nobody saw end


class PeerSummary(msgspec.Struct, kw_only=True):
    """One peer of a run. What a peer that did not finish can no longer tell is null.

    bytes_sent:  all that left its sockets: headers, acknowledgements and relayed payloads included
    bytes_dense: what a dense float32 ring all-reduce in every step would have sent
    exit:        finished | failed (status N) | killed (SIGNAL) | interrupted | lost
    """

    id: str
    steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_dense: int = 0
    updates_applied: int = 0
    base_digest: str | None = None
    consensus_distance: float | None = None
    staleness_p50: int | None = None
    staleness_p99: int | None = None
    step_seconds_p50: float | None = None
    exit: str = LOST


class Summary(msgspec.Struct, kw_only=True):
    """One run. `val_loss` is the mean over the peers that recorded one, or null."""

    schema: int = SCHEMA
    run: str
    algorithm: str | None
    topology: str | None
    compress: str | None
    seconds: float
    val_loss: float | None
    peers: list[PeerSummary]

    @property
    def digests_agree(self) -> bool:
        """Whether all peers that finished hold the same shared base."""
        digests = {p.base_digest for p in self.peers if p.exit == "finished"}
        return len(digests) == 1 and None not in digests


class PeerHistory:
    """One peer's events, folded as they are read.

    start:    the fields of its start event, empty before
    metrics:  the last value of each recorded metric
    progress: the fields of its last progress event, empty before
    finish:   the peer's own record of a run that it finished, or None
    error:    the sentence with which it gave up, or None
    """

    def __init__(self, directory: Path) -> None:
        self.id = directory.name
        self._path = directory / EVENTS_FILE
        self._offset = 0
        self.start: dict[str, Any] = {}
        self.progress: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.finish: PeerSummary | None = None
        self.error: str | None = None
        self.loss_first: float | None = None
        self.training_since: float | None = None

    def read(self) -> list[dict[str, Any]]:
        """Fold in, and return, the events written since the last call.

        A line that is cut short is left for the next call; one that is no event is passed over.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        events = []
        for line in complete.splitlines():
            try:
                event = msgspec.json.decode(line, type=dict[str, Any])
                self._fold(event)
            except msgspec.MsgspecError:
                continue
            events.append(event)
        return events

    def _fold(self, event: dict[str, Any]) -> None:
        fields = {key: value for key, value in event.items() if key not in ("time", "event")}
        match event.get("event"):
            case "start":
                self.start = fields
            case "progress":
                self.progress = fields
                if self.loss_first is None:
                    self.loss_first = fields.get("loss")
                if self.training_since is None and fields.get("state") == "training":
                    self.training_since = event.get("time")
            case "metric":
                self.metrics.update({k: v for k, v in fields.items() if v is not None})
            case "error":
                self.error = str(fields.get("message", ""))
            case "finish":
                self.finish = msgspec.convert({"id": self.id, **fields}, PeerSummary)

    def summary(self, exit_: str) -> PeerSummary:
        """The peer's own record, or what its last progress event says.

        exit_: how its process ended
        """
        if self.finish is not None:
            return msgspec.structs.replace(self.finish, exit=exit_)
        last = self.progress
        return PeerSummary(
            id=self.id,
            steps=last.get("step", 0),
            loss_first=self.loss_first,
            loss_last=last.get("loss"),
            bytes_sent=last.get("bytes_sent", 0),
            bytes_received=last.get("bytes_received", 0),
            bytes_dense=last.get("bytes_dense", 0),
            updates_applied=last.get("updates_applied", 0),
            staleness_p50=last.get("staleness"),
            exit=exit_,
        )


def summarize(run_dir: Path, exits: Mapping[str, str], *, seconds: float) -> Summary:
    """Read the events of a run directory.

    exits:   how each peer's process ended, by peer id; in the order of the summary
    seconds: wall time of the whole run
    """
    histories = [PeerHistory(run_dir / peer) for peer in exits]
    for history in histories:
        history.read()
    losses = [h.metrics["val_loss"] for h in histories if "val_loss" in h.metrics]
    start = next((h.start for h in histories if h.start), {})
    return Summary(
        run=start.get("run") or run_dir.name,
        algorithm=start.get("algorithm"),
        topology=start.get("topology"),
        compress=start.get("compress"),
        seconds=round(seconds, 3),
        val_loss=sum(losses) / len(losses) if losses else None,
        peers=[h.summary(exits[h.id]) for h in histories],
    )


def write(summary: Summary, path: Path) -> None:
    """Write a summary as indented JSON; a reader sees all of it or nothing."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    partial.replace(path)
