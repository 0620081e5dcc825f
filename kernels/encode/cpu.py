"""Encoding on one CPU thread: the specification of `reference.py` as native code.

A chunk's magnitudes stay in the first-level cache. The k-th largest of the maxima of 4k groups
bounds the k-th largest magnitude from below, so only the groups that reach it are searched, and a
few more than k candidates are left. Both thresholds are found by bisecting the magnitude bits.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from gossamer.kernels.fixed_point import ENCODE_LIMIT, MAX_STEP
from gossamer.kernels.format import CHUNK_ELEMENTS, MAX_SCALE_BITS, chunk_count

INFINITY_KEY = 0x7F800000
SMALLEST_EXPONENT = 40
# More groups bound the threshold more closely, and take longer to bisect.
GROUPS_PER_SELECTED = 4
ROUNDER = np.float32(1.5 * 2**23)
ONE_OVER_127 = np.float32(1 / 127)


def encode(x, base, unit_exponent, *, format, shares):
    """See `gossamer.kernels.encode.encode`."""
    n = x.numel()
    chunks = chunk_count(n)
    payload = torch.empty(format.payload_bytes(n), dtype=torch.uint8)
    skipped = torch.zeros(2, dtype=torch.int32)
    octets = payload.numpy()
    record_bytes = 4 * format.record_words * chunks
    _encode(
        x.detach().numpy(),
        base.numpy(),
        unit_exponent.numpy(),
        octets[:record_bytes].view(np.uint32).reshape(chunks, format.record_words),
        octets[record_bytes:].view(np.uint16),
        skipped.numpy(),
        format.k,
        format.bits,
        format.low_bits,
        shares,
        np.float32(1.0 / shares),
        np.float32(MAX_STEP // shares),
    )
    return payload, skipped


@njit(cache=True, nogil=True)
def round_half_even(value):
    """Round a float32 of at most 2**22 in magnitude; the sum has no bits left for a fraction."""
    return np.float32(np.float32(value + ROUNDER) - ROUNDER)


@njit(cache=True, nogil=True)
def power_of_two(exponent):
    """Give 2 ** exponent for exponents from -100 to 100; those beyond count as these."""
    return np.int32((min(max(exponent, -100), 100) + 127) << 23).view(np.float32)


@njit(cache=True, nogil=True)
def share_count(scale, level, weight, inverse_unit, bound):
    """Round one share of scale * level to counts, as `fixed_point.share_counts` does."""
    counts = np.float32(np.float32(scale * np.float32(level)) * weight) * inverse_unit
    return np.int64(round_half_even(min(max(counts, -bound), bound)))


@njit(cache=True, nogil=True)
def _load_keys(x, base, unit, key):
    """Fill key [4096] with the magnitude bits of x - base * unit, zero where not encodable."""
    m = x.size
    not_finite = np.int32(0)
    beyond = np.int32(0)
    for i in range(m):
        count = base[i]
        bits = np.float32(x[i] - np.float32(count) * unit).view(np.int32) & np.int32(0x7FFFFFFF)
        bad = bits >= INFINITY_KEY
        far = (count > ENCODE_LIMIT) | (count < -ENCODE_LIMIT)
        not_finite += np.int32(bad)
        beyond += np.int32(far)
        key[i] = np.int32(0) if bad | far else np.int32(bits)
    for i in range(m, CHUNK_ELEMENTS):
        key[i] = 0
    return not_finite, beyond


@njit(cache=True, nogil=True)
def _count_at_least(key, m, threshold):
    count = np.int32(0)
    for i in range(m):
        count += np.int32(key[i] >= threshold)
    return count


@njit(cache=True, nogil=True)
def _bisect(key, m, k, low, high):
    """Narrow low, which at least k of m keys reach, and high, which fewer than k reach.

    Stops when exactly k reach low, or when high is low + 1. Gives how many reach high, too.
    """
    reach_low = _count_at_least(key, m, low)
    reach_high = 0
    while reach_low != k and high - low > 1:
        middle = np.int32(low + (high - low) // 2)
        reach = _count_at_least(key, m, middle)
        if reach >= k:
            low, reach_low = middle, reach
        else:
            high, reach_high = middle, reach
    return low, high, reach_high


@njit(cache=True, nogil=True)
def _select(key, k, largest, group, position, candidate, index):
    """Fill index [k] with the positions of the k largest keys, ascending; ties to the lower one.

    Group g holds the keys g, g + groups, g + 2 groups, ...: their maxima vectorize.
    """
    groups = GROUPS_PER_SELECTED * k
    largest[:] = key[:groups]
    for start in range(groups, CHUNK_ELEMENTS, groups):
        row = key[start : start + groups]
        for g in range(groups):
            largest[g] = max(largest[g], row[g])
    low = largest[0]
    high = largest[0]
    for g in range(groups):
        low = min(low, largest[g])
        high = max(high, largest[g])
    high = np.int32(high + 1)

    # Where k maxima reach a bound, k keys do, and no key outside of these groups reaches it.
    low, _, _ = _bisect(largest, groups, k, low, high)
    kept = 0
    for g in range(groups):
        group[kept] = g
        kept += largest[g] >= low
    m = 0
    for start in range(0, CHUNK_ELEMENTS, groups):
        row = key[start : start + groups]
        for t in range(kept):
            g = group[t]
            position[m] = start + g
            candidate[m] = row[g]
            m += row[g] >= low

    low, high, reach_high = _bisect(candidate, m, k, low, high)
    ties = k - reach_high
    taken = 0
    for j in range(m):
        if candidate[j] >= high:
            index[taken] = position[j]
            taken += 1
        elif candidate[j] >= low and ties > 0:
            index[taken] = position[j]
            taken += 1
            ties -= 1


@njit(cache=True, nogil=True)
def _round_to_bfloat16(value):
    bits = np.int64(np.float32(value).view(np.int32))
    return min((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, MAX_SCALE_BITS)


@njit(cache=True, nogil=True)
def _quantize(d, k, bits, level, code):
    """Fill level and code [k] from d [k]; give the bits of the scale."""
    largest = np.int64(0)
    for j in range(k):
        largest = max(largest, np.int64(np.float32(d[j]).view(np.int32) & 0x7FFFFFFF))
    exponent = max(largest >> 23, 1)
    if exponent < SMALLEST_EXPONENT:
        for j in range(k):
            code[j] = 0
            level[j] = 0
        return np.int64(0)

    if bits == 8:
        scale_bits = _round_to_bfloat16(np.int32(largest).view(np.float32) * ONE_OVER_127)
        step = np.int32(scale_bits << 16).view(np.float32)
        for j in range(k):
            rounded = np.int64(round_half_even(np.float32(d[j] / step)))
            level[j] = min(max(rounded, -127), 127)
            code[j] = level[j] & 0xFF
        return scale_bits

    total = np.int64(0)
    for j in range(k):
        key = np.int64(np.float32(d[j]).view(np.int32) & 0x7FFFFFFF)
        own = key >> 23
        mantissa = (key & 0x7FFFFF) | (np.int64(own > 0) << 23)
        level[j] = (mantissa >> 4) >> min(exponent - max(own, 1), 31)
        total += level[j]
    quotient = total // k
    if bits == 1:
        for j in range(k):
            negative = np.int32(d[j] < 0)
            code[j] = negative
            level[j] = 1 - 2 * negative
    else:
        mean = quotient
        product = np.int64(0)
        square = np.int64(0)
        for j in range(k):
            negative = np.int32(d[j] < 0)
            high = np.int32(8 * level[j] > 9 * mean)
            magnitude = 2 + high
            product += magnitude * level[j]
            square += magnitude * magnitude
            code[j] = negative | (high << 1)
            level[j] = magnitude * (1 - 2 * negative)
        quotient = product // square
    multiplier = np.int32((exponent - 19) << 23).view(np.float32)
    return _round_to_bfloat16(np.float32(quotient) * multiplier)


@njit(cache=True, nogil=True)
def _pack_fields(field, k, width, mask, word):
    """Pack the masked fields into words, the lowest bits first; word holds k * width / 32."""
    pending = np.uint64(0)
    filled = 0
    at = 0
    for j in range(k):
        pending |= np.uint64(field[j] & mask) << np.uint64(filled)
        filled += width
        if filled >= 32:
            word[at] = np.uint32(pending & np.uint64(0xFFFFFFFF))
            at += 1
            pending >>= np.uint64(32)
            filled -= 32


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(
    x, base, unit_exponent, record, scale, skipped, k, bits, low_bits, shares, weight, bound
):
    n = x.size
    key = np.empty(CHUNK_ELEMENTS, np.int32)
    position = np.empty(CHUNK_ELEMENTS + 1, np.int32)
    candidate = np.empty(CHUNK_ELEMENTS + 1, np.int32)
    largest = np.empty(GROUPS_PER_SELECTED * k, np.int32)
    group = np.empty(GROUPS_PER_SELECTED * k + 1, np.int32)
    index = np.empty(k, np.int32)
    d = np.empty(k, np.float32)
    level = np.empty(k, np.int32)
    code = np.empty(k, np.int32)
    low_words = k * low_bits // 32
    high_words = (k + (CHUNK_ELEMENTS >> low_bits)) // 32
    for c in range(record.shape[0]):
        start = c * CHUNK_ELEMENTS
        stop = min(start + CHUNK_ELEMENTS, n)
        unit = power_of_two(np.int32(unit_exponent[c]))
        inverse_unit = power_of_two(-np.int32(unit_exponent[c]))
        own = base[start:stop]
        not_finite, beyond = _load_keys(x[start:stop], own, unit, key)
        skipped[0] += not_finite
        skipped[1] += beyond
        _select(key, k, largest, group, position, candidate, index)

        for j in range(k):
            i = index[j]
            # A key of zero is also that of an element which cannot be encoded.
            d[j] = np.float32(0)
            if key[i] != 0:
                d[j] = x[start + i] - np.float32(own[i]) * unit
        scale_bits = _quantize(d, k, bits, level, code)
        scale[c] = scale_bits

        word = record[c]
        _pack_fields(index, k, low_bits, (1 << low_bits) - 1, word[:low_words])
        high = word[low_words : low_words + high_words]
        high[:] = 0
        for j in range(k):
            at = (index[j] >> low_bits) + j
            high[at >> 5] |= np.uint32(1) << np.uint32(at & 31)
        _pack_fields(code, k, bits, (1 << bits) - 1, word[low_words + high_words :])

        step = np.int32(scale_bits << 16).view(np.float32)
        for j in range(k):
            i = index[j]
            if start + i < n:
                count = share_count(step, level[j], weight, inverse_unit, bound)
                total = np.int64(own[i]) + shares * count
                if total == np.int32(total):
                    own[i] = total
                else:
                    skipped[1] += 1
