"""A peer as the engine is one: applies updates in order, serves and adopts states, drains.

Run as a script it is a peer in its own process, which can be stopped and killed:
one JSON line with its status goes out every 0.1 s, and lines with commands come in.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import overlays
from xxhash import xxh3_128_digest

from gossamer.transport import (
    Desynchronized,
    Event,
    Failed,
    Member,
    MemberChanged,
    Node,
    NodeConfig,
    Refused,
    StateArrived,
    StateRequested,
    Status,
    Update,
    Welcomed,
)

LIFETIME_SECONDS = 60


def payload_of(origin: int, seq: int, size: int) -> bytes:
    """Bytes that only this update has."""
    unit = xxh3_128_digest(f"{origin}/{seq}".encode())
    return (unit * (size // len(unit) + 1))[:size]


class Peer:
    """A node and the engine's part of the contract around it."""

    def __init__(self, name: str, *, first: bool, topology: str = "ring", **config: Any) -> None:
        self.node = Node(
            NodeConfig(
                peer=name,
                run="run" if first else None,
                settings={"topology": topology} if first else {},
                **config,
            ),
            overlays.of_names,
        )
        self.name, self.origin = name, self.node.origin
        self.clock: dict[int, int] = {}
        self.delivered: Counter[tuple[int, int]] = Counter()
        self.events: list[Event] = []
        self.adoptions = self.desynchronized = 0
        self.finished = False
        self.state_bytes = 0  # ballast of the states that this peer serves
        self._token = 0
        self._asked_at: float | None = None
        self.node.start()

    def begin(self, endpoint: str | None = None) -> "Peer":
        if endpoint is None:
            self.node.bootstrap()
        else:
            self.node.join(endpoint)
        return self

    def publish(self, size: int, payload: bytes | bytearray | None = None) -> None:
        seq = self.clock.get(self.origin, 0) + 1
        self.clock[self.origin] = seq
        self.node.publish(
            seq=seq,
            step=seq,
            shares=1,
            codec=0,
            produced=time.monotonic(),
            payload=payload_of(self.origin, seq, size) if payload is None else payload,
        )

    def turn(self, timeout: float = 0.0) -> None:
        """What the training thread does between two steps."""
        for event in self.node.poll(timeout):
            self._handle(event)
        if self._asked_at is not None and time.monotonic() - self._asked_at > 1.0:
            self._ask()
        if self.finished:
            self.node.finish(self.clock)

    def _handle(self, event: Event) -> None:
        match event:
            case Update(origin, seq, payload=payload):
                if seq <= self.clock.get(origin, 0):
                    assert self.adoptions, f"{self.name} got {origin:x}/{seq} twice"
                    return
                assert seq == self.clock.get(origin, 0) + 1, f"{origin:x}/{seq} out of order"
                assert payload == payload_of(origin, seq, len(payload))
                self.clock[origin] = seq
                self.delivered[origin, seq] += 1
            case StateRequested(origin, token):
                state = {"clock": {str(o): s for o, s in self.clock.items()}}
                ballast = "x" * self.state_bytes
                self.node.send_state(origin, token, json.dumps([state, ballast]).encode())
            case StateArrived(token, payload):
                if token == self._token and self._asked_at is not None:
                    state, _ = json.loads(bytes(payload))
                    self.clock = {int(o): s for o, s in state["clock"].items()}
                    self.adoptions += 1
                    self._asked_at = None
                    self.node.adopt(self.clock)
            case Welcomed():
                self.events.append(event)
                self._ask()
            case Desynchronized():
                self.desynchronized += 1
                if self._asked_at is None:
                    self._ask()
            case Failed(error):
                raise error
            case MemberChanged() | Refused():
                self.events.append(event)

    def _ask(self) -> None:
        self._token += 1
        self._asked_at = time.monotonic()
        self.node.request_state(self._token)

    def training(self) -> int:
        return sum(m.status is Status.TRAINING for m in self.node.members)

    def member(self, name: str) -> Member | None:
        return next((m for m in self.node.members if m.peer == name), None)

    def status_of(self, name: str) -> Status | None:
        member = self.member(name)
        return None if member is None else member.status


def until(peers: Iterable[Peer], condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Let the peers take their turns until something is so; fails when it does not come to be."""
    peers, end = list(peers), time.monotonic() + seconds
    while not condition():
        states = {p.name: [(m.peer, m.status.name) for m in p.node.members] for p in peers}
        assert time.monotonic() < end, f"{what}: not within {seconds} s; {states}"
        for peer in peers:
            peer.turn(0.005)


def for_a_while(peers: Sequence[Peer], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for peer in peers:
            peer.turn(0.005)


def all_training(peers: Sequence[Peer], n: int | None = None) -> None:
    count = len(peers) if n is None else n
    until(peers, lambda: all(p.training() == count for p in peers), 10, f"{count} are training")


def drain(peers: Sequence[Peer], seconds: float = 15) -> None:
    """End as the engine ends: everybody finishes, then all must agree."""
    for peer in peers:
        peer.finished = True
    until(peers, lambda: all(p.node.drained for p in peers), seconds, "all drained")
    assert all(peer.clock == peers[0].clock for peer in peers)


class Process:
    """A peer in its own process."""

    def __init__(self, name: str, endpoint: str, **config: Any) -> None:
        arguments = json.dumps({"name": name, "endpoint": endpoint, "config": config})
        self._process = subprocess.Popen(
            [sys.executable, __file__, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._unread = b""
        self.status: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """The latest status; empty before the first."""
        assert self._process.stdout is not None
        while data := self._process.stdout.read(1 << 16):
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        if lines:
            self.status = json.loads(lines[-1])
        return self.status

    def command(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def _main() -> None:
    signal.alarm(LIFETIME_SECONDS)
    arguments = json.loads(sys.argv[1])
    peer = Peer(arguments["name"], first=False, **arguments["config"]).begin(arguments["endpoint"])
    size, interval, published_at, told_at = 0, 0.0, 0.0, 0.0
    while True:
        peer.turn(0.005)
        now = time.monotonic()
        if interval and now - published_at >= interval and not peer.node.congested:
            published_at = now
            peer.publish(size)
        if select.select([sys.stdin], [], [], 0)[0]:
            command = json.loads(sys.stdin.readline() or '{"end": true}')
            if "end" in command:
                break
            interval, size = command.get("interval", 0.0), command.get("size", 0)
            for _ in range(command.get("publish", 0)):
                peer.publish(size)
            peer.finished = command.get("finish", False)
        if now - told_at >= 0.1:
            told_at = now
            status = {
                "origin": peer.origin,
                "clock": peer.clock,
                "drained": peer.node.drained,
                "adoptions": peer.adoptions,
                "members": {m.peer: [m.status.name, m.incarnation] for m in peer.node.members},
            }
            print(json.dumps(status), flush=True)
    peer.node.close()


if __name__ == "__main__":
    _main()
