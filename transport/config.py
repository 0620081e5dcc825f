"""What a node is told once, by whoever starts it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What a node is told once. Times are seconds."""

    peer: str  # this peer's id, unique in the run
    run: str | None  # None: learn it from the peer that is joined
    bind: str = "tcp://127.0.0.1:0"  # port 0: any free one
    advertise: str | None = None  # what others connect to; None: the bound endpoint
    signature: str = ""  # of the model; peers with another one are refused
    description: str = ""  # of the model, for people
    settings: Mapping[str, str] = field(default_factory=dict)  # told to joiners
    peer_timeout: float = 20.0  # of silence, until a neighbour is dead; other deadlines derive
    max_update_bytes: int = 1 << 32
    max_state_bytes: int = 1 << 36
    log_bytes: int = 1 << 28  # kept for resending
    inbox_bytes: int = 1 << 28  # beyond that no more credit is granted until updates are applied
