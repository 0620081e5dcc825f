"""Bytes in, bytes out: numbered updates to every peer of a run, exactly once, over ZeroMQ.

`Node` is one peer's presence on the network: one I/O thread, one ROUTER, two DEALERs per neighbour.
It knows nothing of models and imports nothing of torch.
"""

from gossamer.transport.broadcast import Update
from gossamer.transport.config import NodeConfig
from gossamer.transport.errors import (
    BindError,
    ProtocolError,
    TransportError,
)
from gossamer.transport.events import (
    Desynchronized,
    Event,
    Failed,
    MemberChanged,
    Refused,
    StateArrived,
    StateRequested,
    Welcomed,
)
from gossamer.transport.message import Member, Status
from gossamer.transport.node import Node
from gossamer.transport.protocol import clock_hash

__all__ = [
    "BindError",
    "Desynchronized",
    "Event",
    "Failed",
    "Member",
    "MemberChanged",
    "Node",
    "NodeConfig",
    "ProtocolError",
    "Refused",
    "StateArrived",
    "StateRequested",
    "Status",
    "TransportError",
    "Update",
    "Welcomed",
    "clock_hash",
]
