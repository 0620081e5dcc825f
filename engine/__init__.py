"""gossamer trains one PyTorch model on machines joined by ordinary networks.

`Engine` wraps any torch model and optimizer; `gossamer launch` and `gossamer join` start its peers.
"""

from gossamer.engine.engine import Engine
from gossamer.engine.errors import (
    ConfigurationError,
    GossamerError,
    JoinError,
    TrainingError,
)

__all__ = ["ConfigurationError", "Engine", "GossamerError", "JoinError", "TrainingError"]
