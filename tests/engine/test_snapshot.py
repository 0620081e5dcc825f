"""State transfer: what goes in comes out, and nothing else is let in."""

import pytest
import torch
import zstandard

from gossamer.engine import TrainingError
from gossamer.engine.snapshot import Snapshot


def snapshot(seed: int = 0, n: int = 9973, spread: int = 1 << 22) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(-spread, spread, (n,), dtype=torch.int32, generator=generator)
    units = torch.full((-(-n // 4096),), -22, dtype=torch.int8)
    rest = {"norm.mean": torch.randn(3, generator=generator), "count": torch.tensor(7)}
    return Snapshot(base, units, {5: 3, 1 << 62: 1}, rest, "feed")


@pytest.mark.parametrize("spread", [4, 1 << 30])
def test_snapshot_round_trip_is_exact(spread: int) -> None:
    original = snapshot(spread=spread)
    packed = original.pack()
    assert packed[0] == (1 if spread == 4 else 0), "compressed only where that pays"
    copy = Snapshot.unpack(bytearray(packed), like=snapshot(seed=1))
    assert torch.equal(copy.base, original.base)
    assert torch.equal(copy.unit_exponent, original.unit_exponent)
    assert dict(copy.clock) == dict(original.clock) and copy.digest == "feed"
    assert all(torch.equal(copy.rest[k], v) for k, v in original.rest.items())


def test_snapshot_of_another_model_is_refused() -> None:
    with pytest.raises(TrainingError, match="another model"):
        Snapshot.unpack(bytearray(snapshot(n=100).pack()), like=snapshot())


def test_snapshot_garbage_is_refused() -> None:
    like, packed = snapshot(), bytearray(snapshot().pack())
    for data in (b"", b"\x00", b"\x01", b"\x02abc", bytes(range(256)), bytes(packed[:100])):
        with pytest.raises(TrainingError):
            Snapshot.unpack(bytearray(data), like=like)


def test_snapshot_decompression_bomb_is_refused_by_its_claim() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(TrainingError, match="claims 268435456 bytes"):
        Snapshot.unpack(bytearray(b"\x01" + bomb), like=snapshot())


def test_snapshot_for_a_peer_that_has_it_is_only_the_clock() -> None:
    original = snapshot()
    packed = original.pack(have=snapshot().identity)
    assert len(packed) < 200 < len(original.pack(have=snapshot(seed=1).identity))
    copy = Snapshot.unpack(bytearray(packed), like=snapshot())
    assert torch.equal(copy.base, original.base) and dict(copy.clock) == dict(original.clock)


def test_snapshot_identity_sees_every_tensor() -> None:
    changed = snapshot()
    changed.rest["count"].add_(1)
    assert changed.identity != snapshot().identity
    other = Snapshot(changed.base, changed.unit_exponent, {}, snapshot().rest, "beef")
    assert other.identity != snapshot().identity
