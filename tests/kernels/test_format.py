import dataclasses

import pytest
from kernel_cases import ALL_FORMATS, format_name

from gossamer import kernels
from gossamer.kernels import CHUNK_ELEMENTS, Format, chunk_count


def test_public_names_are_pinned():
    assert set(kernels.__all__) == {
        "CHUNK_ELEMENTS",
        "FORMATS",
        "Decoded",
        "Encoded",
        "Format",
        "FusedAdamW",
        "FusedSGD",
        "adamw_",
        "check",
        "choose_unit_exponents",
        "chunk_count",
        "decode",
        "encode",
        "sgd_",
        "to_counts",
        "to_float",
    }
    assert all(hasattr(kernels, name) for name in kernels.__all__)


@pytest.mark.parametrize(
    ("k", "bits", "record_bytes"), [(64, 1, 72), (64, 2, 80), (64, 8, 128), (256, 1, 224)]
)
def test_record_size_is_that_of_the_documentation(k, bits, record_bytes):
    format = Format(k, bits)
    assert 4 * format.record_words == record_bytes
    assert format.payload_bytes(0) == 0
    assert format.payload_bytes(1) == record_bytes + 2
    assert format.payload_bytes(CHUNK_ELEMENTS) == record_bytes + 2
    assert format.payload_bytes(CHUNK_ELEMENTS + 1) == 2 * (record_bytes + 2)


@pytest.mark.parametrize("format", ALL_FORMATS, ids=format_name)
def test_sections_fill_whole_words(format):
    assert format.k * format.low_bits == 32 * format.low_words
    assert format.high_bits == 32 * format.high_words
    assert format.k * format.bits == 32 * format.code_words


@pytest.mark.parametrize(("k", "bits"), [(64, 3), (63, 1), (0, 0), (256, 8)])
def test_format_refuses_others_and_names_the_choices(k, bits):
    with pytest.raises(ValueError, match=rf"k={k}, bits={bits}.*k=64, bits=1.*k=256, bits=1"):
        Format(k, bits)


def test_format_is_a_value():
    assert Format(64, 2) == Format(64, 2)
    assert len({Format(64, 2), Format(64, 2), Format(64, 1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Format(64, 2).k = 1


@pytest.mark.parametrize(("n", "chunks"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
def test_chunk_count_covers_every_element(n, chunks):
    assert chunk_count(n) == chunks
