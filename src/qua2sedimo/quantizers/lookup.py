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
    """Write rows ``first`` to ``last`` of ``out`` [channels, n] from packed codes and levels of out's type.

    Eight codes fill ``bits`` bytes and are read as one word. All numbers are unsigned: a signed index would be checked
    for being negative at every weight.
    """
    one, seven, eight = np.uint64(1), np.uint64(7), np.uint64(8)
    n, width, mask = np.uint64(out.shape[1]), np.uint64(bits), np.uint64((1 << bits) - 1)
    size = np.uint64(packed.size)
    whole = np.uint64(max(0, packed.size - 8) // bits * 8)  # before this code, a group's word ends within packed
    for c in range(first, last):
        book, row = levels[c % levels.shape[0]], out[c]
        at = np.uint64(c) * n  # the number of the row's first code
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
