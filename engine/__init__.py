"""gossamer trains one PyTorch model on machines joined by ordinary networks.

`Engine` wraps any torch model and optimizer; `gossamer launch` and `gossamer join` start its peers.
"""

from typing import TYPE_CHECKING

from gossamer.engine.errors import (
    ConfigurationError,
    GossamerError,
    JoinError,
    TrainingError,
)

if TYPE_CHECKING:
    from gossamer.engine.engine import Engine


def __getattr__(name: str) -> object:
    # The command line imports this package, and torch takes seconds to load.
    if name == "Engine":
        from gossamer.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ConfigurationError", "Engine", "GossamerError", "JoinError", "TrainingError"]
