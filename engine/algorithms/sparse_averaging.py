"""Sparse averaging over a shared base, the default algorithm.

Each peer holds its model x and its view B of the shared base; the error feedback is the difference
x - B.

    encode    q = compress(x - B);  B += q    every `local_steps` steps; x is untouched
    receive   x, B += w q of another peer     once each, in any order between peers
    displace  x, B -= w q of an own update    one share when another peer's contribution of the
                                              same age has arrived, until only w q is left

S = B - (own shares not yet displaced) = the sum over all updates of w q. B is held in integer
counts of a power-of-two unit per chunk, w q is rounded to counts once, by the same rule
everywhere: peers that have seen the same updates hold the same bits of S, whatever the order. x -
B is moved only by the optimizer and by encode: what is not sent stays in it.

A crash loses what the peer had not published, nothing else. Staleness is borne by the age rule: an
own step counts in full until the others' steps of the same time have arrived. Compression of the
difference to a shared base is in the line of Stich et al. 2018 (error feedback) and Koloskova et
al. 2019 (difference compression); the exact, order-free sum is a grow-only set under a commutative
fold (Shapiro et al. 2011).
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from xxhash import xxh3_64

from gossamer.engine.compression import codec_of, from_codec
from gossamer.engine.snapshot import Snapshot
from gossamer.kernels import Format, choose_unit_exponents, decode, encode, to_counts, to_float
from gossamer.kernels import check as check_payload
from gossamer.transport import Update

MAX_SHARES = 1 << 20


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An update to publish.

    payload:    uint8 on the CPU, never written to again
    shares:     its weight is 1/shares
    codec:      the level's number on the wire
    nonfinite:  how many differences were NaN or infinite, and so were left out
    saturated:  how many elements have left the range of the base, and so were left out
    """

    seq: int
    payload: Tensor
    shares: int
    codec: int
    nonfinite: int
    saturated: int


@dataclass(slots=True)
class _Pending:
    """An own update of which shares are still displaced in the own view only."""

    payload: Tensor  # on the model's device
    level: Format
    shares: int
    produced: float
    waiting: set[int]  # peers whose contribution of the same age has not arrived


@dataclass(frozen=True, slots=True)
class _Term:
    payload: Tensor
    level: Format
    shares: int
    multiplicity: int


class SparseAveraging:
    """The state of one peer.

    x:      [n] float32, the model; changed in place
    origin: this peer's number
    level:  of compression, for what this peer sends
    """

    name = "sparse-averaging"

    def __init__(self, x: Tensor, *, origin: int, level: Format) -> None:
        self.x, self.origin, self.level = x, origin, level
        self.unit_exponent = choose_unit_exponents(x)
        self.base = to_counts(x, self.unit_exponent)
        self.clock: dict[int, int] = {}
        self._pending: deque[_Pending] = deque()
        self._frontier: dict[int, float] = {}

    # -- what goes out

    def encode(self, *, peers: Iterable[int], now: float) -> Outgoing:
        """Compress x - B into an update that this peer and `peers` share."""
        waiting = set(peers)
        shares = len(waiting) + 1
        encoded = encode(self.x, self.base, self.unit_exponent, format=self.level, shares=shares)
        seq = self.clock.get(self.origin, 0) + 1
        self.clock[self.origin] = seq
        if waiting:
            self._pending.append(_Pending(encoded.payload, self.level, shares, now, waiting))
        nonfinite, saturated = encoded.skipped.tolist()
        codec = codec_of(self.level)
        return Outgoing(seq, encoded.payload.cpu(), shares, codec, nonfinite, saturated)

    # -- what comes in

    def refusal(self, update: Update) -> str | None:
        """Why an update cannot be applied; the same verdict on every peer."""
        level = from_codec(update.codec)
        if level is None:
            return f"unknown codec {update.codec}"
        if update.shares > MAX_SHARES:
            return f"{update.shares} shares, at most {MAX_SHARES}"
        try:
            check_payload(_tensor_of(update), self.x.numel(), level)
        except ValueError as error:
            return str(error)
        return None

    def apply(self, updates: Sequence[Update], *, contributing: set[int]) -> int:
        """Receive updates and displace own shares; returns how many sums overflowed.

        updates:      valid ones, per origin in order; of this peer itself only after `adopt`
        contributing: the peers from which contributions can still come
        """
        terms = []
        for update in updates:
            self.clock[update.origin] = update.seq
            self._frontier[update.origin] = max(
                update.produced, self._frontier.get(update.origin, update.produced)
            )
            level = from_codec(update.codec)
            assert level is not None, "apply follows refusal"
            payload = _tensor_of(update).to(self.x.device)
            terms.append(_Term(payload, level, update.shares, 1))
        terms += self._displaced(contributing)
        return _add(terms, self.x, self.base, self.unit_exponent)

    def skip(self, update: Update) -> None:
        """Count a refused update as seen."""
        self.clock[update.origin] = update.seq

    def _displaced(self, contributing: set[int]) -> list[_Term]:
        terms = []
        for own in self._pending:
            arrived = {
                peer
                for peer in own.waiting
                if peer not in contributing or self._frontier.get(peer, -1.0) >= own.produced
            }
            if arrived:
                own.waiting -= arrived
                terms.append(_Term(own.payload, own.level, own.shares, -len(arrived)))
        while self._pending and not self._pending[0].waiting:
            self._pending.popleft()
        return terms

    # -- the shared base

    def shared_base(self) -> Tensor:
        """S, as [n] int32 counts: equal on every peer that has applied the same updates."""
        base = self.base.clone()
        own = [_Term(p.payload, p.level, p.shares, -len(p.waiting)) for p in self._pending]
        _add([term for term in own if term.multiplicity], None, base, self.unit_exponent)
        return base

    def digest(self, base: Tensor | None = None) -> str:
        """16 hex digits of S and its units."""
        base = self.shared_base() if base is None else base
        state = xxh3_64(base.cpu().numpy().tobytes())
        state.update(self.unit_exponent.cpu().numpy().tobytes())
        return state.hexdigest()

    def consensus_distance(self) -> float:
        """The Euclidean norm of x - S."""
        shared = to_float(self.shared_base(), self.unit_exponent)
        return float(torch.linalg.vector_norm(self.x - shared))

    def consolidate(self) -> None:
        """Make x equal to S, the model that all peers agree on. For the ends of a run."""
        self.base = self.shared_base()
        self._pending.clear()
        self.x.copy_(to_float(self.base, self.unit_exponent))

    # -- state transfer

    def rebase(self) -> None:
        """Begin a base at x. Only while no other peer holds a copy of it.

        Raises ValueError when x is not finite.
        """
        self.unit_exponent = choose_unit_exponents(self.x)
        self.base = to_counts(self.x, self.unit_exponent)

    def snapshot(self, rest: dict[str, Tensor]) -> Snapshot:
        base = self.shared_base()
        return Snapshot(base, self.unit_exponent, dict(self.clock), rest, self.digest(base))

    def adopt(self, snapshot: Snapshot, *, keep_residual: bool) -> None:
        """Continue from another peer's shared base.

        keep_residual: whether x - B, what this peer has learned and not sent, survives
        """
        base = snapshot.base.to(self.x.device)
        units = snapshot.unit_exponent.to(self.x.device)
        new = to_float(base, units)
        if keep_residual:
            self.x += new - to_float(self.base, self.unit_exponent)
        else:
            self.x.copy_(new)
        self.base, self.unit_exponent = base.clone(), units.clone()
        self.clock = dict(snapshot.clock)
        self._pending.clear()


def _tensor_of(update: Update) -> Tensor:
    return torch.frombuffer(update.payload, dtype=torch.uint8)


def _add(terms: Sequence[_Term], x: Tensor | None, base: Tensor, unit_exponent: Tensor) -> int:
    overflows = 0
    for level in dict.fromkeys(term.level for term in terms):
        group = [term for term in terms if term.level == level]
        decoded = decode(
            [term.payload for term in group],
            [term.shares for term in group],
            [term.multiplicity for term in group],
            x,
            base,
            unit_exponent,
            format=level,
        )
        overflows += int(decoded.status[1])
    return overflows
