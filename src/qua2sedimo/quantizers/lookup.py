"""Compiled look-up: weights to the nearest of their row's levels, packed codes to the levels they name.

All kernels run in one thread and without Python's lock: callers spread layers or rows over threads, which holds
on every platform, whatever threading layer numba finds there.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

_COUNTED = 32  # levels up to which counting those passed beats a search
_STRIP = 2048  # weights that stay in the first cache while they are compared


def kernels_read(tensor: torch.Tensor) -> bool:
    """Whether it is a real tensor on the CPU whose operations are not being traced."""
    return tensor.device.type == "cpu" and is_real(tensor)


def is_real(tensor: torch.Tensor) -> bool:
    """Whether it is a real tensor whose operations are not being traced."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return plain and not torch.compiler.is_compiling()


@numba.njit(cache=True, nogil=True)
def nearest_rows(x, levels, codes):  # type: ignore[no-untyped-def]
    """Write to ``codes`` (uint8, shape of x) the nearest of each row's ascending levels, the lower on a tie.

    ``levels`` has a power of two of columns, and one row for all of x or one for each.
    """
    channels, n = x.shape
    size = levels.shape[1]
    for c in range(channels):
        book, row, out = levels[c % levels.shape[0]], x[c], codes[c]
        if size <= _COUNTED:  # one level after the other passed by many weights at once
            out[:] = 0
            for start in range(0, n, _STRIP):
                values, passed = row[start : start + _STRIP], out[start : start + _STRIP]
                for k in range(size - 1):
                    low, high = book[k], book[k + 1]
                    for i in range(values.size):
                        passed[i] += np.uint8(values[i] - low > high - values[i])
        else:
            for i in range(n):
                at = 0
                step = size // 2
                while step:  # no branch depends on the value: it would be mispredicted half the time
                    k = at + step - 1
                    at += step * (row[i] - book[k] > book[k + 1] - row[i])
                    step //= 2
                out[i] = at


@intrinsic
def _word(typing, packed, at):  # type: ignore[no-untyped-def]
    """The eight bytes from ``at`` on, the first lowest, in one load: numba would make eight of it."""
    if packed.layout != "C":
        raise TypingError("packed codes must be contiguous")

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(byte, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(packed, types.uint64), generate


@numba.njit(cache=True, nogil=True)
def decode_rows(packed, bits, levels, out, first, last):  # type: ignore[no-untyped-def]
    """Write rows ``first`` to ``last`` of ``out`` [channels, n] from packed codes and levels of out's type."""
    for c in range(first, last):
        _decode_row(packed, bits, levels[c % levels.shape[0]], np.uint64(c) * np.uint64(out.shape[1]), out[c])


@numba.njit(cache=True, nogil=True)
def product_rows(packed, bits, levels, factors, sums, first, last):  # type: ignore[no-untyped-def]
    """Write to ``sums`` (fp64 [channels]), for rows ``first`` to ``last``, Σ_i level·factor with ``factors`` fp32
    [channels, n] and levels fp32: a row of levels at a time, which stays in the first cache."""
    row = np.empty(factors.shape[1], np.float32)
    for c in range(first, last):
        _decode_row(packed, bits, levels[c % levels.shape[0]], np.uint64(c) * np.uint64(row.size), row)
        sums[c] = _dot(row, factors[c])


@numba.njit(cache=True, nogil=True)
def _dot(a, b):  # type: ignore[no-untyped-def]
    """Σ a·b in fp64 of eight sums in fp32, which do not wait for each other; the same on every processor."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    i = 0
    while i + 8 <= a.size:
        s0 += a[i] * b[i]
        s1 += a[i + 1] * b[i + 1]
        s2 += a[i + 2] * b[i + 2]
        s3 += a[i + 3] * b[i + 3]
        s4 += a[i + 4] * b[i + 4]
        s5 += a[i + 5] * b[i + 5]
        s6 += a[i + 6] * b[i + 6]
        s7 += a[i + 7] * b[i + 7]
        i += 8
    total = np.float64(s0) + s1 + s2 + s3 + s4 + s5 + s6 + s7
    while i < a.size:
        total += a[i] * b[i]
        i += 1
    return total


@numba.njit(cache=True, nogil=True)
def _decode_row(packed, bits, book, at, row):  # type: ignore[no-untyped-def]
    """Write to ``row`` [n] the levels of ``book`` that packed codes name from number ``at`` on.

    Eight codes fill ``bits`` bytes and are read as one word. All numbers are unsigned: a signed index would be checked
    for being negative at every weight.
    """
    one, seven, eight = np.uint64(1), np.uint64(7), np.uint64(8)
    n, width, mask = np.uint64(row.size), np.uint64(bits), np.uint64((1 << bits) - 1)
    size = np.uint64(packed.size)
    whole = np.uint64(max(0, packed.size - 8) // bits * 8)  # before this code, a group's word ends within packed
    i = np.uint64(0)
    while i < n:
        if (at + i) & seven == 0 and i + eight <= n and at + i < whole:
            stop = min(n - seven, whole - at)
            while i < stop:
                word = _word(packed, (at + i) // eight * width)
                for k in range(8):
                    row[i + np.uint64(k)] = book[(word >> (np.uint64(k) * width)) & mask]
                i += eight
        else:
            bit = (at + i) * width
            byte = bit >> np.uint64(3)
            pair = np.uint64(packed[byte])
            if byte + one < size:
                pair |= np.uint64(packed[byte + one]) << eight
            row[i] = book[(pair >> (bit & seven)) & mask]
            i += one


@numba.njit(cache=True, nogil=True)
def pack_codes(codes, bits, packed):  # type: ignore[no-untyped-def]
    """Write uint8 codes [N] to ``packed`` [⌈N·bits/8⌉]; returns the largest code, for the caller to check."""
    n = codes.size
    largest = np.uint8(0)
    for group in range(n // 8):
        word = np.uint64(0)
        for k in range(8):
            code = codes[8 * group + k]
            largest = max(largest, code)
            word |= np.uint64(code) << np.uint64(k * bits)
        for k in range(bits):
            packed[group * bits + k] = np.uint8((word >> np.uint64(8 * k)) & np.uint64(255))
    word = np.uint64(0)
    for k in range(n % 8):
        code = codes[n - n % 8 + k]
        largest = max(largest, code)
        word |= np.uint64(code) << np.uint64(k * bits)
    for k in range(packed.size - n // 8 * bits):
        packed[n // 8 * bits + k] = np.uint8((word >> np.uint64(8 * k)) & np.uint64(255))
    return largest
