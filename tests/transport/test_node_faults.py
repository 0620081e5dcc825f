"""What happens to a run when processes die or stand still, and connections break or crawl."""

import signal
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tcp_proxy import Proxy
from transport_peer import Peer, Process, all_training, drain, for_a_while, payload_of, until

from gossamer.transport import Status
from gossamer.transport.sessions import CREDIT_WINDOW_BYTES


class Stage:
    """The peers of a test, in this process and in their own, and the proxies between them."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.processes: list[Process] = []
        self.proxies: list[Proxy] = []

    def peer(self, name: str, *, proxy: Proxy | None = None, **config: Any) -> Peer:
        """A peer here; the first one begins the run, the others join it."""
        if proxy is not None:
            config["advertise"] = proxy.endpoint
        peer = Peer(name, first=not self.peers, **config)
        if proxy is not None:
            proxy.lead_to(peer.node.endpoint)
        peer.begin(self.peers[0].node.endpoint if self.peers else None)
        self.peers.append(peer)
        return peer

    def process(self, name: str, **config: Any) -> Process:
        self.processes.append(Process(name, self.peers[0].node.endpoint, **config))
        return self.processes[-1]

    def proxy(self, **options: Any) -> Proxy:
        self.proxies.append(Proxy(**options))
        return self.proxies[-1]

    def all_training(self) -> None:
        all_training(self.peers, len(self.peers) + len(self.processes))

    def close(self) -> None:
        for process in self.processes:
            process.end()
        for peer in self.peers:
            peer.node.close()
        for proxy in self.proxies:
            proxy.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def all_see(peers: list[Peer], name: str, *statuses: Status) -> Callable[[], bool]:
    return lambda: all(peer.status_of(name) in statuses for peer in peers)


@pytest.mark.parametrize("topology", ["ring", "complete"])
def test_killed_peer_is_dead_after_the_timeout_and_the_others_agree(
    stage: Stage, topology: str
) -> None:
    timeout = 1.5
    peers = [stage.peer(f"peer-{i}", topology=topology, peer_timeout=timeout) for i in range(3)]
    victim = stage.process("victim", peer_timeout=timeout)
    stage.all_training()
    victim.command(interval=0.01, size=300_000)
    until(
        peers, lambda: all(len(p.clock) == 1 and sum(p.clock.values()) > 5 for p in peers), 10, ""
    )
    victim.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    until(peers, all_see(peers, "victim", Status.DEAD), 10, "all see the death")
    assert timeout * 0.6 < time.monotonic() - killed_at < timeout + 3
    for peer in peers:
        peer.publish(1000)
    drain(peers)
    assert all(set(peer.delivered.values()) == {1} for peer in peers)


def test_last_update_of_a_killed_peer_reaches_all_by_its_only_receiver(stage: Stage) -> None:
    timeout = 4.0
    heir = stage.peer("a", topology="complete", peer_timeout=timeout)
    proxy = stage.proxy()
    other = stage.peer("b", proxy=proxy, peer_timeout=timeout)
    victim = stage.process("victim", peer_timeout=timeout)
    stage.all_training()
    until(stage.peers, lambda: bool(victim.read()), 5, "the victim tells its origin")
    origin = victim.read()["origin"]
    victim.command(publish=2, size=100)
    until(stage.peers, lambda: other.clock.get(origin) == 2, 5, "two updates everywhere")
    proxy.refuses = True
    assert proxy.cut() > 0
    victim.command(publish=1, size=400_000)
    until(stage.peers, lambda: heir.clock.get(origin) == 3, 5, "the heir has the third")
    victim.signal(signal.SIGKILL)
    assert other.clock[origin] == 2
    for_a_while(stage.peers, 0.3)
    assert other.clock[origin] == 2
    proxy.refuses = False
    until(stage.peers, lambda: other.clock[origin] == 3, 8, "the heir passes it on")
    until(stage.peers, all_see(stage.peers, "victim", Status.DEAD), 12, "all see the death")
    drain(stage.peers)
    assert heir.clock == other.clock


def test_connections_cut_in_mid_transfer_lose_nothing(stage: Stage) -> None:
    a = stage.peer("a")
    proxy = stage.proxy(rate=6_000_000)
    b = stage.peer("b", proxy=proxy)
    stage.all_training()
    for _ in range(3):
        a.publish(1_500_000)
        b.publish(1_500_000)
        seen = proxy.towards
        until([a, b], lambda seen=seen: proxy.towards > seen + 400_000, 10, "a transfer is on")  # type: ignore[misc]
        assert a.clock != b.clock
        assert proxy.cut() > 0
    until([a, b], lambda: a.clock == b.clock, 20, "everything arrives")
    drain([a, b])
    assert a.clock == {a.origin: 3, b.origin: 3}
    assert all(set(peer.delivered.values()) == {1} for peer in (a, b))
    assert all_see([a, b], "a", Status.COMPLETE)()


def test_connections_cut_again_and_again_lose_nothing(stage: Stage) -> None:
    """Both sides reset at once, also in the middle of a greeting."""
    proxies = [stage.proxy(), stage.proxy()]
    a = stage.peer("a", proxy=proxies[0])
    b = stage.peer("b", proxy=proxies[1])
    stage.all_training()
    for i in range(24):
        a.publish(2000)
        b.publish(2000)
        for_a_while([a, b], 0.03)
        if i % 4 == 0:
            for proxy in proxies:
                proxy.cut()
    until([a, b], lambda: a.clock == b.clock, 20, "everything arrives")
    drain([a, b])
    assert a.clock == {a.origin: 24, b.origin: 24}


def test_slow_link_congests_without_a_false_death(stage: Stage) -> None:
    """20 MB crawl for much longer than `peer_timeout`; heartbeats pass them."""
    timeout = 2.0
    a = stage.peer("a", peer_timeout=timeout)
    proxy = stage.proxy(rate=6_000_000)
    b = stage.peer("b", proxy=proxy, peer_timeout=timeout)
    stage.all_training()
    a.publish(20_000_000)
    started = time.monotonic()
    small = []
    while not b.clock:
        assert time.monotonic() - started < 20
        if not a.node.congested:
            small.append(proxy.towards)
            a.publish(100)
        for_a_while([a, b], 0.02)
        assert a.status_of("b") is b.status_of("a") is Status.TRAINING
    assert time.monotonic() - started > 1.5 * timeout
    # The large one and the first three small ones are the backlog until its last bytes are in the
    # sockets, which hold no more than the credit.
    assert all(seen < 1_000_000 for seen in small[:3])
    assert all(seen > 20_000_000 - 1.5 * CREDIT_WINDOW_BYTES for seen in small[3:])
    until([a, b], lambda: b.clock == a.clock and not a.node.congested, 5, "the backlog goes")
    assert {m.incarnation for peer in (a, b) for m in peer.node.members} == {0}
    drain([a, b])


def test_slow_link_takes_bounded_memory(stage: Stage) -> None:
    """A peer that publishes without regard for `congested` keeps its log and a quarter of it."""

    class Payload(bytearray):
        pass

    log_bytes, size = 8_000_000, 500_000
    a = stage.peer("a", log_bytes=log_bytes)
    b = stage.peer("b", proxy=stage.proxy(rate=1_000_000))
    stage.all_training()
    alive: set[int] = set()
    for seq in range(1, 61):
        payload = Payload(payload_of(a.origin, seq, size))
        alive.add(seq)
        weakref.finalize(payload, alive.discard, seq)
        a.publish(size, payload)
        del payload
        for_a_while([a, b], 0.01)
    until([a, b], lambda: a.clock == {a.origin: 60}, 1, "all are published")
    for_a_while([a, b], 0.2)
    # What the socket holds comes on top: eight chunks, each of which keeps its payload.
    assert len(alive) * size <= 1.25 * log_bytes + 10 * size
    assert a.node.congested
    assert b.clock.get(a.origin, 0) < 60


def test_short_standstill_is_forgiven(stage: Stage) -> None:
    timeout = 4.0
    peers = [stage.peer(f"peer-{i}", peer_timeout=timeout) for i in range(2)]
    sleeper = stage.process("sleeper", peer_timeout=timeout)
    stage.all_training()
    sleeper.command(interval=0.05, size=1000)
    until(peers, lambda: all(len(p.clock) == 1 for p in peers), 5, "it publishes")
    sleeper.signal(signal.SIGSTOP)
    for _ in range(20):
        peers[0].publish(1000)
        for_a_while(peers, 0.1)
    sleeper.signal(signal.SIGCONT)
    sleeper.command(finish=True)
    for peer in peers:
        peer.finished = True
    until(peers, lambda: all(p.node.drained for p in peers), 15, "all drain")
    until(peers, lambda: sleeper.read()["drained"], 5, "it drains as well")
    assert {str(o): s for o, s in peers[0].clock.items()} == sleeper.read()["clock"]
    assert peers[0].clock == peers[1].clock
    assert {m.incarnation for m in peers[0].node.members} == {0}
    assert sleeper.read()["adoptions"] == 1


@pytest.mark.parametrize("log_bytes", [1 << 28, 20_000], ids=["log", "state"])
def test_peer_that_was_thought_dead_comes_back_and_gets_everything(
    stage: Stage, log_bytes: int
) -> None:
    timeout = 1.2
    config = {"peer_timeout": timeout, "log_bytes": log_bytes}
    peers = [stage.peer(f"peer-{i}", topology="ring", **config) for i in range(3)]
    sleeper = stage.process("sleeper", **config)
    stage.all_training()
    sleeper.command(publish=3, size=100)
    until(peers, lambda: all(sum(p.clock.values()) == 3 for p in peers), 5, "it publishes")
    sleeper.signal(signal.SIGSTOP)
    until(peers, all_see(peers, "sleeper", Status.DEAD), 8, "all think it dead")
    for _ in range(40):
        peers[0].publish(1000)
        peers[1].publish(1000)
        for_a_while(peers, 0.01)
    sleeper.signal(signal.SIGCONT)
    until(peers, all_see(peers, "sleeper", Status.TRAINING), 8, "all see it alive")
    refuted = peers[0].member("sleeper")
    assert refuted is not None
    assert refuted.incarnation >= 1
    sleeper.command(publish=2, size=100)

    def same() -> bool:
        clock = {str(o): s for o, s in peers[0].clock.items()}
        return sleeper.read()["clock"] == clock and sum(clock.values()) == 85

    until(peers, same, 12, "it has everything, and everybody has its new updates")
    sleeper.command(finish=True)
    drain(peers)
    tables = [{m.peer: [m.status.name, m.incarnation] for m in p.node.members} for p in peers]
    until(peers, lambda: sleeper.read()["drained"], 5, "it drains as well")
    assert all(table.keys() == sleeper.read()["members"].keys() for table in tables)
    assert all(status == "COMPLETE" for table in tables for status, _ in table.values())
    assert (sleeper.read()["adoptions"] > 1) == (log_bytes == 20_000)


def test_peer_that_one_neighbour_thinks_dead_is_told_so_and_refutes(stage: Stage) -> None:
    """Only the link between two of three is broken; the third passes the false news on."""
    timeout = 1.5
    proxies = [stage.proxy(), stage.proxy()]
    a = stage.peer("a", topology="complete", proxy=proxies[0], peer_timeout=timeout)
    b = stage.peer("b", proxy=proxies[1], peer_timeout=timeout)
    c = stage.peer("c", peer_timeout=timeout)
    stage.all_training()
    # A forged death, as one neighbour with a broken link would spread it.
    death = [m for m in a.node.members if m.peer == "c"]
    a.node._command(
        a.node._protocol._merge,
        [type(m)(m.peer, m.origin, m.endpoint, 0, m.version, Status.DEAD) for m in death],
    )
    until([a], all_see([a], "c", Status.DEAD), 2, "a thinks c dead")

    def refuted() -> bool:
        rows = [peer.member("c") for peer in (a, b, c)]
        return all(r is not None and r.alive and r.incarnation == 1 for r in rows)

    until([a, b, c], refuted, 8, "c is alive again in all tables")
    for peer in (a, b, c):
        peer.publish(1000)
    drain([a, b, c])


def test_neighbour_that_was_replaced_is_not_kept_alive_by_its_successor(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that restarts on the same port is another peer; the old one must still die."""
    timeout = 1.5
    a = stage.peer("a", peer_timeout=timeout)
    b = stage.peer("b", peer_timeout=timeout)
    proxy = stage.proxy()
    old = stage.peer("c", proxy=proxy, peer_timeout=timeout)
    stage.all_training()
    successor = Peer("c", first=True, bind="tcp://127.0.0.1:0", peer_timeout=timeout)
    successor.begin()
    stage.peers.append(successor)
    proxy.lead_to(successor.node.endpoint)
    # The old one vanishes without a word: its thread ends before it can say that it leaves.
    old.node._command(_vanish)
    proxy.cut()
    for_a_while([a, b], 0.1)

    def dead() -> bool:
        rows = [m for peer in (a, b) for m in peer.node.members if m.origin == old.origin]
        return all(row.status is Status.DEAD for row in rows)

    until([a, b], dead, 8, "the old peer is dead")
    assert "another peer listens where a member of the run did" in caplog.text


def _vanish() -> None:
    raise SystemExit


def test_suspended_observer_blames_nobody(stage: Stage) -> None:
    """The I/O thread of one peer stands still for longer than `peer_timeout`."""
    timeout = 1.0
    peers = [stage.peer(f"peer-{i}", peer_timeout=timeout) for i in range(2)]
    stage.all_training()
    sleeper = stage.process("sleeper", peer_timeout=timeout)
    stage.all_training()
    sleeper.signal(signal.SIGSTOP)
    for_a_while(peers, 2.0)
    sleeper.signal(signal.SIGCONT)
    until(peers, all_see(peers, "sleeper", Status.TRAINING), 8, "all see it alive")
    for_a_while(peers, 1.0)
    assert {m.incarnation for m in peers[0].node.members if m.peer != "sleeper"} == {0}
    assert sleeper.read()["members"]["peer-0"] == ["TRAINING", 0]
