"""Decoding on one CPU thread: the specification of `reference.py` as native code.

A record is decoded into the cache and judged as a whole before any of it is applied.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from gossamer.kernels.encode.cpu import power_of_two, share_count
from gossamer.kernels.fixed_point import MAX_STEP
from gossamer.kernels.format import CHUNK_ELEMENTS, MAX_SCALE_BITS, chunk_count
from gossamer.kernels.launch import stack_rows

NO_MODEL = np.empty(0, np.float32)


def decode(payloads, shares, multiplicity, x, base, unit_exponent, *, format):
    """See `gossamer.kernels.decode.decode`."""
    status = torch.zeros(2, dtype=torch.int32)
    if not payloads:
        return status
    record, scale = _sections(payloads, base.numel(), format)
    share = np.array(shares, np.int64)
    _decode(
        record,
        scale,
        NO_MODEL if x is None else x.detach().numpy(),
        base.numpy(),
        unit_exponent.numpy(),
        status.numpy(),
        format.k,
        format.bits,
        format.low_bits,
        np.array(multiplicity, np.int64),
        (1.0 / share).astype(np.float32),
        (MAX_STEP // share).astype(np.float32),
    )
    return status


def first_corrupt(payload, n, format):
    """Give the first chunk whose record is not valid, or -1."""
    record, scale = _sections([payload], n, format)
    return int(_first_corrupt(record[0], scale[0], format.k, format.low_bits))


def _sections(payloads, n, format):
    """Give records [R, chunks, record_words] uint32 and scales [R, chunks] uint16."""
    chunks = chunk_count(n)
    octets = stack_rows(payloads).numpy()
    record_bytes = 4 * format.record_words * chunks
    record = octets[:, :record_bytes].view(np.uint32)
    scale = octets[:, record_bytes : record_bytes + 2 * chunks].view(np.uint16)
    return record.reshape(len(payloads), chunks, format.record_words), scale


@njit(cache=True, nogil=True)
def _read_indices(word, k, low_bits, low_words, high_words, index):
    """Fill index [k] from a record; tell whether its indices are valid."""
    pending = np.uint64(0)
    filled = 0
    at = 0
    for j in range(k):
        if filled < low_bits:
            pending |= np.uint64(word[at]) << np.uint64(filled)
            at += 1
            filled += 32
        index[j] = np.int32(pending & np.uint64((1 << low_bits) - 1))
        pending >>= np.uint64(low_bits)
        filled -= low_bits

    found = 0
    for w in range(high_words):
        rest = word[low_words + w]
        at = 32 * w
        while rest != 0:
            if found == k:
                return False
            # Isolate the lowest set bit; the float's exponent is its position.
            lowest = rest & (np.uint32(0) - rest)
            place = (np.float32(lowest).view(np.int32) >> 23) - 127
            index[found] |= (at + place - found) << low_bits
            found += 1
            rest ^= lowest
    if found != k or index[k - 1] >= CHUNK_ELEMENTS:
        return False
    ascending = True
    for j in range(1, k):
        ascending &= index[j] > index[j - 1]
    return ascending


@njit(cache=True, nogil=True)
def _first_corrupt(record, scale, k, low_bits):
    index = np.empty(k, np.int32)
    low_words = k * low_bits // 32
    high_words = (k + (CHUNK_ELEMENTS >> low_bits)) // 32
    for c in range(record.shape[0]):
        if scale[c] > MAX_SCALE_BITS:
            return c
        if not _read_indices(record[c], k, low_bits, low_words, high_words, index):
            return c
    return -1


@njit(cache=True, nogil=True)
def _level(code, bits):
    if bits == 8:
        return (code ^ 0x80) - 0x80
    magnitude = 1 if bits == 1 else 2 + (code >> 1)
    return magnitude * (1 - 2 * (code & 1))


@njit(cache=True, nogil=True)
def _decode(record, scale, x, base, unit_exponent, status, k, bits, low_bits, times, weight, bound):
    n = base.size
    has_model = x.size > 0
    index = np.empty(k, np.int32)
    delta = np.empty(k, np.int64)
    low_words = k * low_bits // 32
    high_words = (k + (CHUNK_ELEMENTS >> low_bits)) // 32
    for c in range(record.shape[1]):
        start = c * CHUNK_ELEMENTS
        unit = power_of_two(np.int32(unit_exponent[c]))
        inverse_unit = power_of_two(-np.int32(unit_exponent[c]))
        for r in range(record.shape[0]):
            word = record[r, c]
            if scale[r, c] > MAX_SCALE_BITS or not _read_indices(
                word, k, low_bits, low_words, high_words, index
            ):
                status[0] += 1
                continue
            step = np.int32(np.int32(scale[r, c]) << 16).view(np.float32)
            code_word = word[low_words + high_words :]
            for j in range(k):
                at = j * bits
                code = np.int64(code_word[at >> 5] >> np.uint32(at & 31)) & ((1 << bits) - 1)
                level = _level(code, bits)
                delta[j] = times[r] * share_count(step, level, weight[r], inverse_unit, bound[r])
            # A loop of its own: little else stands between the cache misses, so they overlap.
            for j in range(k):
                i = start + index[j]
                if i >= n:
                    break
                total = np.int64(base[i]) + delta[j]
                if total != np.int32(total):
                    status[1] += 1
                    continue
                base[i] = total
                if has_model:
                    x[i] += np.float32(delta[j]) * unit
