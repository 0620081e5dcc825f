"""The byte layout of a payload, and what one chunk of it may hold.

A payload covers `n` elements in chunks of 4096 and is `records | scales`, all little-endian:

    section | shape                          | holds
    records | [chunks, record_words] uint32  | per chunk `low words | high words | code words`
    scales  | [chunks] uint16                | bfloat16 bits of each chunk's scale, never negative

With i_0 < ... < i_{k-1} the chunk's indices and l = log2(4096 / k), bits counted from the least
significant: low words hold the low l bits of i_j at bit j * l; high words have bit (i_j >> l) + j
set (Elias-Fano); code words hold code j at bit j * bits. Every size follows from n and the format,
so no length is ever sent.
"""

from __future__ import annotations

from dataclasses import dataclass

CHUNK_ELEMENTS = 4096
CHUNK_BITS = 12
WORD_BYTES = 4
SCALE_BYTES = 2
# Largest bfloat16 below infinity; a scale with bits above it is corrupt.
MAX_SCALE_BITS = 0x7F7F

FORMATS = ((64, 1), (64, 2), (64, 8), (256, 1))


def chunk_count(n: int) -> int:
    """Count the chunks of 4096 elements that cover `n` elements."""
    return -(-n // CHUNK_ELEMENTS)


@dataclass(frozen=True, slots=True)
class Format:
    """How a chunk of 4096 elements is cut down: `k` kept elements of `bits` bits each.

    Raises ValueError for a pair that is not in `FORMATS`.
    """

    k: int  # fewer => fewer bytes, more left in the error feedback
    bits: int  # fewer => fewer bytes, coarser values

    def __post_init__(self) -> None:
        if (self.k, self.bits) not in FORMATS:
            choices = ", ".join(f"(k={k}, bits={bits})" for k, bits in FORMATS)
            raise ValueError(f"no format (k={self.k}, bits={self.bits}); choose one of {choices}")

    @property
    def low_bits(self) -> int:
        """Bits of an index that are stored verbatim."""
        return CHUNK_BITS - (self.k.bit_length() - 1)

    @property
    def high_bits(self) -> int:
        """Length in bits of the unary section."""
        return self.k + (CHUNK_ELEMENTS >> self.low_bits)

    @property
    def low_words(self) -> int:
        return self.k * self.low_bits // 32

    @property
    def high_words(self) -> int:
        return self.high_bits // 32

    @property
    def code_words(self) -> int:
        return self.k * self.bits // 32

    @property
    def record_words(self) -> int:
        return self.low_words + self.high_words + self.code_words

    def payload_bytes(self, n: int) -> int:
        """Bytes of a payload for `n` elements."""
        return chunk_count(n) * (WORD_BYTES * self.record_words + SCALE_BYTES)
