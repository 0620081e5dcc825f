"""The errors of the engine.

GossamerError
├── ConfigurationError   what was asked for cannot be done; nothing was started
├── JoinError            the run could not be joined
└── TrainingError        the run went wrong after it started
"""


class GossamerError(Exception):
    """Root of everything that the engine raises; the text is one sentence for the user."""


class ConfigurationError(GossamerError):
    """An argument, a flag or an environment variable that cannot be honoured."""


class JoinError(GossamerError):
    """Nobody answered, or the run refused this peer."""


class TrainingError(GossamerError):
    """Something that the run cannot go on after."""
