"""The Engine: wraps any torch model and optimizer, and makes the process one peer of a run."""

import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from gossamer.engine import compression
from gossamer.engine.algorithms import SparseAveraging
from gossamer.engine.errors import ConfigurationError
from gossamer.engine.exchange import Exchange
from gossamer.engine.metrics import EventLog
from gossamer.engine.parameters import FlatParameters
from gossamer.engine.settings import resolve

T = TypeVar("T")


class Engine:
    """One peer of a run, as a context manager around a training loop.

        with Engine(model, optimizer) as engine:
            for x, y in engine.shard(loader):
                optimizer.zero_grad()
                loss_fn(model(x), y).backward()
                engine.step()

    model:        any module; its trainable float32 parameters become views of one buffer
    optimizer:    any torch optimizer over the model's parameters
    topology:     ring, complete, exponential or torus; None: that of the run, or ring
    compress:     what this peer sends, as in 1/64:2bit (1 value of 64 kept, 2 bits each)
    local_steps:  optimizer steps between two updates
    peer_timeout: seconds of silence until a peer is dead; every other deadline derives from it
    total_steps:  only for the progress display
    bind:         endpoint to listen on, tcp://127.0.0.1:0 by default (port 0: any free one)
    advertise:    what others connect to, where that differs from what is bound
    join:         endpoint of any peer of a run to join; None: begin one
    insecure:     allow an endpoint beyond loopback although the connection is not encrypted
    peer:         this peer's id, unique in the run; None: a random one

    Settings of `gossamer launch` and `gossamer join` win over these arguments. Alone, a peer is
    the plain optimizer bit for bit. On leaving the block all peers drain: they hold the same
    updates, and each model becomes the shared one. Leaving by an exception leaves the run at once.
    Raises ConfigurationError for arguments that cannot be honoured, JoinError when a run cannot be
    joined.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        topology: str | None = None,
        compress: str | None = None,
        local_steps: int | None = None,
        peer_timeout: float | None = None,
        total_steps: int | None = None,
        bind: str | None = None,
        advertise: str | None = None,
        join: str | None = None,
        insecure: bool = False,
        peer: str | None = None,
    ) -> None:
        self.settings = resolve(
            topology_name=topology,
            compress=compress,
            local_steps=local_steps,
            peer_timeout=peer_timeout,
            bind=bind,
            advertise=advertise,
            join=join,
            insecure=insecure,
            peer=peer,
        )
        self.model, self.optimizer = model, optimizer
        self._total_steps = total_steps
        self._parameters = FlatParameters.of(model)
        self._exchange: Exchange | None = None
        self._events = EventLog(None)
        self._step = 0
        self._drained = False
        self._bytes_dense = 0.0
        self._loss_first: float | None = None
        self._loss: float | Tensor | None = None
        self._consensus_distance = 0.0
        self._report: dict[str, Any] | None = None

    # -- life

    def __enter__(self) -> Self:
        settings = self.settings
        directory = settings.run_dir / settings.peer if settings.run_dir else None
        self._events = EventLog(directory)
        try:
            self._exchange = Exchange(settings, self._parameters, self._events)
            self._progress("joining", force=True)
            self._exchange.start()
        except BaseException as error:
            self._fail(error)
            raise
        self._events.write(
            "start",
            peer=settings.peer,
            pid=os.getpid(),
            run=self._exchange.run,
            algorithm=SparseAveraging.name,
            topology=self._exchange.topology,
            compress=compression.name_of(settings.level),
            local_steps=settings.local_steps,
            peer_timeout=settings.peer_timeout,
            parameters=self._parameters.flat.numel(),
            total_steps=self._total_steps,
        )
        self._progress("training", force=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._fail(error)
            return
        try:
            self.drain()
        except BaseException as failure:
            self._fail(failure)
            raise
        self._report = self.stats()
        self._events.write("finish", **self._report)
        self._close()

    def _fail(self, error: BaseException) -> None:
        self._events.write("error", message=f"{type(error).__name__}: {error}")
        self._close()

    def _close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()
        self._events.close()

    # -- training

    @torch.no_grad()
    def step(self, loss: float | Tensor | None = None) -> None:
        """Call `optimizer.step()`, then take part in the exchange.

        loss: of this step, for the metrics only
        """
        exchange = self._running()
        if self._drained:
            raise ConfigurationError("this peer has drained; take no step after engine.drain()")
        with torch.enable_grad():
            self.optimizer.step()
        self._step += 1
        if loss is not None:
            self._loss = loss.detach() if isinstance(loss, Tensor) else float(loss)
            if self._loss_first is None:
                self._loss_first = float(self._loss)
        peers = max(1, exchange.present())
        self._bytes_dense += 2 * (peers - 1) / peers * 4 * self._parameters.flat.numel()
        exchange.turn(self._step)
        self._progress("training")

    def wait_for_peers(self, count: int) -> bool:
        """Wait until so many peers are in the run, this one included; False if they do not come.

        While it waits, this peer serves others: it answers joiners and applies what arrives.
        """
        return self._running().wait_for_peers(count)

    def shard(self, iterable: Iterable[T]) -> Iterator[T]:
        """This peer's share of an iterable: every n-th item, beginning with its rank.

        Who shares is settled when the pass begins; the next pass follows the membership.
        """
        peers, rank = self.peers, self.rank
        for index, item in enumerate(iterable):
            if index % peers == rank:
                yield item

    @torch.no_grad()
    def drain(self) -> None:
        """Wait until every peer has finished and all hold the same updates.

        The model is then the shared one, the same on every peer; a peer that was always alone keeps
        its own. Called on leaving the block; call it earlier to evaluate inside.
        """
        exchange = self._running()
        if self._drained:
            return
        self._drained = True
        self._consensus_distance = exchange.algorithm.consensus_distance() if self._shared else 0.0
        self._progress("draining", force=True)
        exchange.drain()
        self._progress("finished", force=True)

    # -- what is known

    @property
    def endpoint(self) -> str:
        """Where other peers can join: tcp://HOST:PORT."""
        return self._running().node.endpoint

    @property
    def rank(self) -> int:
        """This peer's place among the peers that train now: 0, 1, ..., peers - 1."""
        ids = self._running().training_ids()
        return ids.index(self.settings.peer) if self.settings.peer in ids else 0

    @property
    def peers(self) -> int:
        """How many peers train now, this one included."""
        return max(1, len(self._running().training_ids()))

    def record(self, **metrics: float) -> None:
        """Write metrics to the run's events, as in engine.record(val_loss=1.9)."""
        self._events.write("metric", **{name: float(value) for name, value in metrics.items()})

    def stats(self) -> dict[str, Any]:
        """What this peer has done so far, as in `summary.json`. Bytes are those of its sockets."""
        if self._report is not None:
            return self._report
        exchange = self._running()
        algorithm = exchange.algorithm
        distance = self._consensus_distance
        if not self._drained and self._shared:
            distance = algorithm.consensus_distance()
        return {
            "id": self.settings.peer,
            "steps": self._step,
            "loss_first": self._loss_first,
            "loss_last": None if self._loss is None else float(self._loss),
            "bytes_sent": exchange.node.traffic.sent,
            "bytes_received": exchange.node.traffic.received,
            "bytes_dense": round(self._bytes_dense),
            "updates_applied": exchange.updates_applied,
            "base_digest": algorithm.digest(),
            "consensus_distance": distance,
            "staleness_p50": exchange.staleness.quantile(0.5),
            "staleness_p99": exchange.staleness.quantile(0.99),
            "step_seconds_p50": exchange.steps.median_seconds(),
            "exit": "finished",
        }

    def state_dict(self) -> dict[str, Any]:
        """What this peer needs to begin again: model, optimizer and step.

        The model holds all that this peer has learned, sent or not.
        """
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Call it before the `with` block.

        The peer that begins a run begins it with this model; one that joins takes the run's shared
        base and keeps its optimizer.
        """
        if self._exchange is not None:
            raise ConfigurationError("call load_state_dict before `with engine:`, not inside")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._step = int(state["step"])

    # -- inside

    @property
    def _shared(self) -> bool:
        return self._running().shared

    def _running(self) -> Exchange:
        if self._exchange is None:
            raise ConfigurationError("the engine is not running; use it inside `with Engine(...)`")
        return self._exchange

    def _progress(self, state: str, *, force: bool = False) -> None:
        if not (self._events.progress_due() or force):
            return
        exchange = self._running()
        self._events.write(
            "progress",
            step=self._step,
            total_steps=self._total_steps,
            loss=None if self._loss is None else float(self._loss),
            bytes_sent=exchange.node.traffic.sent,
            bytes_received=exchange.node.traffic.received,
            bytes_dense=round(self._bytes_dense),
            updates_applied=exchange.updates_applied,
            staleness=exchange.staleness.quantile(0.5),
            peers=len([m for m in exchange.node.members if m.alive]),
            state=state,
        )
