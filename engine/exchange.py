"""A peer's part in the run: joins the algorithm (what) with the node (how).

Everything here happens on the training thread, between two optimizer steps or while waiting to
begin or to end; no wait is without a deadline that derives from `peer_timeout`.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gossamer.engine.algorithms import SparseAveraging
from gossamer.engine.errors import ConfigurationError, JoinError, TrainingError
from gossamer.engine.metrics import EventLog, Histogram, StepClock
from gossamer.engine.parameters import FlatParameters
from gossamer.engine.settings import Settings
from gossamer.engine.snapshot import Snapshot, copy_rest
from gossamer.engine.topology import neighbours
from gossamer.transport import (
    BindError,
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

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
WARNING_INTERVAL_SECONDS = 30.0
# What is kept for resending; who misses more fetches the shared base.
MIN_LOG_BYTES = 64 * 1024 * 1024
LOGGED_UPDATES = 32


class Exchange:
    """One peer's exchange of updates.

    settings:   resolved; `topology` and `run` may be decided by the run that is joined
    parameters: the flat model, changed in place
    events:     where joins, leaves and warnings are written
    Raises ConfigurationError when the endpoint cannot be bound.
    """

    def __init__(self, settings: Settings, parameters: FlatParameters, events: EventLog) -> None:
        self.settings, self._events = settings, events
        self._parameters = parameters
        self.steps = StepClock()
        self.staleness = Histogram()
        self.updates_applied = 0
        self.topology = settings.topology
        self.run = settings.run
        self.shared = False  # whether another peer has ever held a copy of the base
        self._joined = False
        self._awaited_state: int | None = None
        self._tokens = 0
        self._warned: dict[str, float] = {}
        own = {"topology": settings.topology or "", "algorithm": SparseAveraging.name}
        units = -(-parameters.flat.numel() // 4096)
        payload_bytes = settings.level.payload_bytes(parameters.flat.numel())
        rest_bytes = sum(t.numel() * t.element_size() for t in parameters.rest.values())
        config = NodeConfig(
            peer=settings.peer,
            run=settings.run,
            bind=settings.bind,
            advertise=settings.advertise,
            signature=parameters.signature,
            description=parameters.description,
            settings=own,
            peer_timeout=settings.peer_timeout,
            log_bytes=max(MIN_LOG_BYTES, LOGGED_UPDATES * payload_bytes),
            max_update_bytes=4 * parameters.flat.numel() + 64 * units,
            max_state_bytes=2 * (4 * parameters.flat.numel() + units + rest_bytes) + (1 << 20),
        )
        try:
            self.node = Node(config, _overlay)
        except BindError as error:
            raise ConfigurationError(
                f"{error}; choose another endpoint with --bind, or port 0 for any free one"
            ) from None
        try:
            self.algorithm = SparseAveraging(
                parameters.flat, origin=self.node.origin, level=settings.level
            )
        except ValueError as error:
            self.node.close()
            raise ConfigurationError(f"the model cannot be shared: {error}") from None

    # -- membership as this peer sees it

    def contributing(self) -> set[int]:
        """The other peers that are training."""
        return {m.origin for m in self._training() if m.origin != self.node.origin}

    def training_ids(self) -> list[str]:
        """All peers that are training, in the order that every peer agrees on."""
        return [m.peer for m in self._training()]

    def present(self) -> int:
        """How many living peers have begun, those that have finished included."""
        return sum(m.alive and m.status is not Status.JOINING for m in self.node.members)

    def _training(self) -> list[Member]:
        return [m for m in self.node.members if m.status is Status.TRAINING]

    # -- beginning

    def start(self) -> None:
        """Begin or join the run, then wait for the peers that start together with this one.

        Raises JoinError or ConfigurationError when that cannot be.
        """
        self.node.start()
        self._events.write("listening", endpoint=self.node.endpoint)
        if self.settings.first:
            self.node.bootstrap()
            if self.settings.rendezvous is not None:
                _write_atomically(self.settings.rendezvous, self.node.endpoint)
        else:
            self._join(self.settings.join or self._meet())
        self.wait_for_peers(self.settings.peers)

    def wait_for_peers(self, count: int) -> bool:
        """Serve the run until so many peers are in it; gives up, with a warning, after a while."""
        came = self._wait(
            lambda: self.present() >= count, time.monotonic() + self.settings.start_timeout
        )
        if not came:
            self.warn("peers", f"only {self.present()} of {count} peers have come")
        return came

    def _meet(self) -> str:
        """Wait for the endpoint of the first peer of this launch."""
        path = self.settings.rendezvous
        assert path is not None, "a peer that is not the first joins or meets"
        deadline = time.monotonic() + self.settings.start_timeout
        if not self._wait(path.exists, deadline):
            raise JoinError(
                f"the first peer of this launch did not come up within "
                f"{self.settings.start_timeout:.0f} s; its log says why"
            )
        return path.read_text(encoding="utf-8")

    def _join(self, endpoint: str) -> None:
        self.node.join(endpoint)
        timeout = self.settings.peer_timeout
        if not self._wait(lambda: self._joined, time.monotonic() + timeout):
            raise JoinError(
                f"no peer answered at {endpoint} within {timeout:.0f} s; check the address and "
                "that the run is still going"
            )
        deadline = time.monotonic() + self.settings.start_timeout
        while not self.shared:
            self._request_state()
            self._wait(lambda: self.shared, time.monotonic() + max(1.0, timeout / 4))
            if not self.shared and time.monotonic() > deadline:
                raise JoinError(
                    f"the peers at {endpoint} did not send their state within "
                    f"{self.settings.start_timeout:.0f} s; try again, or join another peer"
                )

    def _request_state(self) -> None:
        self._tokens += 1
        self._awaited_state = self._tokens
        have = "" if self.shared else self._snapshot().identity
        self.node.request_state(self._tokens, have)

    # -- going on

    def turn(self, step: int) -> None:
        """Take part in the exchange after a local step."""
        now = time.monotonic()
        self.steps.tick(now)
        if step % self.settings.local_steps == 0:
            self._publish(step, now)
        self._handle(self.node.poll())

    def _publish(self, step: int, now: float) -> None:
        peers = self.contributing()
        if not (peers or self.shared) or self.node.congested:
            return
        self.shared = True
        out = self.algorithm.encode(peers=peers, now=now)
        if out.nonfinite:
            self.warn(
                "nonfinite",
                f"{out.nonfinite} parameters are NaN or infinite at step {step} and were not "
                "sent; lower the learning rate or clip the gradients",
            )
        if out.saturated:
            self.warn(
                "saturated",
                f"{out.saturated} parameters have grown beyond the range of the shared base and "
                "are no longer sent; lower the learning rate or add weight decay",
            )
        self.node.publish(
            seq=out.seq,
            step=step,
            shares=out.shares,
            codec=out.codec,
            produced=now,
            payload=out.payload.numpy().data,
        )

    def _handle(self, events: Sequence[Event]) -> None:
        updates = []
        for event in events:
            match event:
                case Update():
                    updates.append(event)
                case StateArrived():
                    self._apply(updates)
                    updates = []
                    self._adopt(event)
                case StateRequested():
                    self._apply(updates)
                    updates = []
                    self._serve_state(event)
                case _:
                    self._handle_membership(event)
        self._apply(updates)

    def _handle_membership(self, event: Event) -> None:
        match event:
            case MemberChanged(member):
                self._note(member)
            case Desynchronized() if self._awaited_state is None:
                self.warn("behind", "updates were missed; fetching the shared base again")
                self._request_state()
            case Welcomed(run, settings):
                self._welcomed(run, settings)
            case Refused(text):
                raise JoinError(text)
            case Failed(error):
                raise TrainingError(f"the connection to the run is lost: {error}") from error

    def _apply(self, updates: Sequence[Update]) -> None:
        accepted = []
        next_seq: dict[int, int] = {}
        for update in updates:
            origin = update.origin
            expected = next_seq.get(origin, self.algorithm.clock.get(origin, 0) + 1)
            if update.seq != expected:
                continue  # seen before a state transfer, and delivered again after it
            next_seq[origin] = expected + 1
            refusal = self.algorithm.refusal(update)
            if refusal is not None:
                self.warn(f"refused {origin}", f"update {origin:x}/{update.seq}: {refusal}")
                self.algorithm.skip(update)
                continue
            accepted.append(update)
            self.staleness.add(self.steps.steps_since(update.produced))
        self.updates_applied += len(accepted)
        overflows = self.algorithm.apply(accepted, contributing=self.contributing())
        if overflows:
            raise TrainingError(
                f"{overflows} sums left the range of the shared base: the parameters grow without "
                "bound; lower the learning rate"
            )

    # -- state transfer

    def _serve_state(self, request: StateRequested) -> None:
        if not self.shared:
            self._rebase()
            self.algorithm.consolidate()
        self.shared = True
        state = self._snapshot().pack(have=request.have)
        self.node.send_state(request.origin, request.token, state)

    def _adopt(self, event: StateArrived) -> None:
        if event.token != self._awaited_state:
            return
        self._awaited_state = None
        snapshot = Snapshot.unpack(event.payload, like=self._snapshot())
        again = self.shared
        self.algorithm.adopt(snapshot, keep_residual=again)
        if self.algorithm.digest() != snapshot.digest:
            raise JoinError("the state that a peer sent does not have the digest that it claims")
        if not again:
            copy_rest(self._parameters.rest, snapshot.rest)
        self.shared = True
        self.node.adopt(snapshot.clock)

    def _snapshot(self) -> Snapshot:
        return self.algorithm.snapshot(self._parameters.rest)

    def _welcomed(self, run: str, settings: Mapping[str, str]) -> None:
        theirs = settings.get("topology", "")
        mine = self.settings.topology
        if mine is not None and mine != theirs:
            raise ConfigurationError(
                f"this run uses the topology {theirs!r}, not {mine!r}; leave --topology out"
            )
        self.run, self.topology, self._joined = run, theirs, True

    # -- ending

    def drain(self) -> None:
        """Take part until all peers have the same updates; the model becomes the shared one.

        A peer that was always alone keeps its own.

        Waits as long as a living peer still trains; a dead one costs `peer_timeout`.
        """
        patience = 3 * self.settings.peer_timeout
        seen, since = None, time.monotonic()
        while not self.node.drained:
            self.node.finish(self.algorithm.clock)
            self._handle(self.node.poll(POLL_SECONDS))
            now = time.monotonic()
            state = (self.node.members, tuple(self.algorithm.clock.items()))
            if state != seen or self._training():
                seen, since = state, now
            if now - since > patience:
                self.warn("drain", f"peers did not agree within {patience:.0f} s; ending anyway")
                break
        if self.shared:
            self._apply([])
            self.algorithm.consolidate()
        else:
            self._rebase()

    def _rebase(self) -> None:
        try:
            self.algorithm.rebase()
        except ValueError as error:
            self.warn("nonfinite", f"the model cannot be shared: {error}")

    def close(self) -> None:
        self.node.close()

    # -- small things

    def warn(self, kind: str, message: str) -> None:
        """Log a warning, each kind at most every 30 s."""
        now = time.monotonic()
        if now - self._warned.get(kind, -1e9) >= WARNING_INTERVAL_SECONDS:
            self._warned[kind] = now
            self._events.write("warning", message=message)
            log.warning("peer=%s %s", self.settings.peer, message)

    def _note(self, member: Member) -> None:
        peers = len([m for m in self.node.members if m.alive])
        match member.status:
            case Status.TRAINING:
                self._events.write("joined", peer=member.peer, peers=peers)
            case Status.LEFT | Status.DEAD:
                reason = member.status.name.lower()
                self._events.write("left", peer=member.peer, peers=peers, reason=reason)

    def _wait(self, until: Callable[[], bool], deadline: float) -> bool:
        while not until():
            if time.monotonic() > deadline:
                return False
            self._handle(self.node.poll(POLL_SECONDS))
        return True


def _overlay(members: Sequence[str], settings: Mapping[str, str]) -> Mapping[str, set[str]]:
    return neighbours(settings["topology"], members)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
