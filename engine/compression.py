"""The compression levels by name: `1/64:2bit` keeps 1 value of 64, with 2 bits for each.

The levels are the formats of gossamer.kernels; on the wire a level is its codec number, so that
every peer can read every level whatever it sends itself.
"""

from gossamer.engine.errors import ConfigurationError
from gossamer.kernels import CHUNK_ELEMENTS, Format

DEFAULT_LEVEL = "1/64:2bit"

LEVELS: dict[str, Format] = {
    f"1/{CHUNK_ELEMENTS // k}:{bits}bit": Format(k, bits)
    for k, bits in ((64, 1), (64, 2), (64, 8), (256, 1))
}
_NAMES = {level: name for name, level in LEVELS.items()}


def parse(text: str) -> Format:
    """The level with this name. Raises ConfigurationError for an unknown one."""
    level = LEVELS.get(text.strip().lower())
    if level is None:
        raise ConfigurationError(f"unknown compression {text!r}; choose one of {', '.join(LEVELS)}")
    return level


def name_of(level: Format) -> str:
    return _NAMES[level]


def codec_of(level: Format) -> int:
    """The level's number on the wire."""
    return level.k << 8 | level.bits


def from_codec(codec: int) -> Format | None:
    """The level with this number, or None when this version does not know it."""
    return next((level for level in LEVELS.values() if codec_of(level) == codec), None)
