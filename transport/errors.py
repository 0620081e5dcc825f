"""The errors of the transport.

TransportError
├── ProtocolError   bytes that are not a message of this protocol
└── BindError       the endpoint cannot be bound
"""


class TransportError(Exception):
    """Root of everything that the transport raises."""


class ProtocolError(TransportError):
    """Bytes from the network that are not a message of this protocol."""


class BindError(TransportError):
    """The endpoint cannot be bound: in use, not ours, or not an endpoint."""
