"""The receiving side of a link: its credit."""

import pytest

from gossamer.transport.errors import ProtocolError
from gossamer.transport.message import Chunk, Kind
from gossamer.transport.sessions import CREDIT_WINDOW_BYTES, Session


def chunk_at(position: int, size: int = 100) -> Chunk:
    return Chunk(Kind.UPDATE, 5, 1, 1, 0, 0, 0, size, 0, position, bytes(size))


def test_session_grants_in_steps_and_not_twice() -> None:
    session = Session(1, 2, 0.0)
    assert session.credit_due() is None
    session.position = CREDIT_WINDOW_BYTES // 4 - 1
    assert session.credit_due() is None
    session.position += 1
    assert session.credit_due() == CREDIT_WINDOW_BYTES + session.position
    session.granted = CREDIT_WINDOW_BYTES + session.position
    assert session.credit_due() is None


@pytest.mark.parametrize("position", [99, 150, 199, CREDIT_WINDOW_BYTES + 1, 1 << 63])
def test_session_refuses_data_outside_its_credit(position: int) -> None:
    session = Session(1, 2, 0.0)
    session.advance(chunk_at(100))
    with pytest.raises(ProtocolError, match="bytes were granted"):
        session.advance(chunk_at(position))
    assert session.position == 100
    session.advance(chunk_at(200))
    assert session.position == 200
