"""The errors of the transport.

TransportError
├── ProtocolError      bytes that are not a message of this protocol
├── BindError          the endpoint cannot be bound
├── RefusedError       a peer answered, and will not have us
└── UnreachableError   no peer answered in time
"""


class TransportError(Exception):
    """Root of everything that the transport raises."""


class ProtocolError(TransportError):
    """Bytes from the network that are not a message of this protocol."""


class BindError(TransportError):
    """The endpoint cannot be bound: in use, not ours, or not an endpoint."""


class RefusedError(TransportError):
    """A peer of the run refused the connection, and said why."""


class UnreachableError(TransportError):
    """Nobody answered within the deadline."""
