"""Payloads from chunks: any order, several sources, nothing taken from who contradicts."""

import os
import random
from dataclasses import replace

import pytest

from gossamer.transport.assembly import MAX_OPEN_PER_SOURCE, Assembly
from gossamer.transport.errors import ProtocolError
from gossamer.transport.message import CHUNK_BYTES, Chunk, Kind


def cut(payload: bytes, *, seq: int = 1, kind: Kind = Kind.UPDATE) -> list[Chunk]:
    total = len(payload)
    return [
        Chunk(kind, 5, seq, 2, 9, 1, 0, total, at, 0, payload[at : at + CHUNK_BYTES])
        for at in range(0, max(total, 1), CHUNK_BYTES)
    ]


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 7]
)
def test_add_restores_the_payload_in_any_order(size: int) -> None:
    payload = os.urandom(size)
    for seed in range(5):
        chunks = cut(payload)
        random.Random(seed).shuffle(chunks)
        assembly = Assembly()
        results = [assembly.add(chunk, 1, 0.0) for chunk in chunks]
        assert results[:-1] == [None] * (len(chunks) - 1)
        assert results[-1] == payload


def test_add_takes_chunks_of_two_sources_once() -> None:
    payload = os.urandom(4 * CHUNK_BYTES)
    a, b, c, d = cut(payload)
    assembly = Assembly()
    for chunk, via in [(a, 1), (b, 1), (a, 2), (b, 2), (c, 2), (c, 1)]:
        assert assembly.add(chunk, via, 0.0) is None
    assert assembly.add(d, 2, 0.0) == payload


def test_add_keeps_the_first_copy_of_a_chunk() -> None:
    payload = os.urandom(2 * CHUNK_BYTES)
    first, second = cut(payload)
    assembly = Assembly()
    assembly.add(first, 1, 0.0)
    assembly.add(replace(first, payload=bytes(CHUNK_BYTES)), 2, 0.0)
    assert assembly.add(second, 1, 0.0) == payload


def test_add_keeps_payloads_of_one_number_apart_by_kind() -> None:
    update, state = os.urandom(2 * CHUNK_BYTES), os.urandom(2 * CHUNK_BYTES)
    assembly = Assembly()
    pairs = zip(cut(update), cut(state, kind=Kind.STATE), strict=True)
    done = [assembly.add(chunk, 1, 0.0) for pair in pairs for chunk in pair]
    assert done == [None, None, update, state]


@pytest.mark.parametrize(
    "change", [{"total": 2 * CHUNK_BYTES + 1}, {"shares": 3}, {"codec": 2}, {"step": 8}], ids=str
)
def test_add_refuses_contradictions_and_goes_on(change: dict[str, int]) -> None:
    payload = os.urandom(2 * CHUNK_BYTES)
    first, second = cut(payload)
    assembly = Assembly()
    assembly.add(first, 1, 0.0)
    with pytest.raises(ProtocolError, match="5/1 contradict"):
        assembly.add(replace(second, **change), 2, 0.0)
    assert not assembly.other_source(second, 1, 0.0)
    assert assembly.add(second, 1, 0.0) == payload


def test_other_source_is_another_neighbour_lately() -> None:
    first, second = cut(os.urandom(2 * CHUNK_BYTES))
    assembly = Assembly()
    assert not assembly.other_source(first, 2, 0.0)
    assembly.add(first, 1, 10.0)
    assert assembly.other_source(second, 2, 10.0)
    assert not assembly.other_source(second, 1, 10.0)
    assert not assembly.other_source(second, 2, 10.1)


def test_arriving_tells_growing_payloads_by_kind() -> None:
    first, second = cut(os.urandom(2 * CHUNK_BYTES), kind=Kind.STATE)
    assembly = Assembly()
    assembly.add(first, 1, 10.0)
    assert assembly.arriving(Kind.STATE, 10.0)
    assert not assembly.arriving(Kind.STATE, 10.1)
    assert not assembly.arriving(Kind.UPDATE, 0.0)
    assembly.add(second, 1, 11.0)
    assert not assembly.arriving(Kind.STATE, 0.0)


def test_one_source_keeps_few_payloads_open() -> None:
    assembly = Assembly()
    payload = os.urandom(2 * CHUNK_BYTES)
    extra = MAX_OPEN_PER_SOURCE + 1
    for seq in range(1, extra + 1):
        assembly.add(cut(payload, seq=seq)[0], 1, 0.0)
    done = [assembly.add(cut(payload, seq=seq)[1], 2, 0.0) for seq in range(1, extra + 1)]
    assert done == [None, *[payload] * MAX_OPEN_PER_SOURCE]


def test_expire_forgets_what_stands_still() -> None:
    old, new = os.urandom(2 * CHUNK_BYTES), os.urandom(2 * CHUNK_BYTES)
    assembly = Assembly()
    assembly.add(cut(old, seq=1)[0], 1, 0.0)
    assembly.add(cut(new, seq=2)[0], 1, 5.0)
    assembly.expire(5.0)
    assert assembly.add(cut(new, seq=2)[1], 1, 6.0) == new
    assert assembly.add(cut(old, seq=1)[1], 1, 6.0) is None
