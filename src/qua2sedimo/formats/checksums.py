"""Checksums of the tensors of safetensors files: one CRC-32 each in the metadata, compared while other work goes on.

A file is read in pieces by some threads, and the sum of each piece covers many tensors. Sums of neighbours can be
joined, so that those in the metadata give what the sum of the whole file must be; only if it is not is every tensor
looked at.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.tensorfiles import DAMAGED_FILE, FileLayout, read_layout

_SUMS = "qua2sedimo.crc32"
_THREADS = 4  # more wait for the disk
# Python's lock is taken twice a piece, and whoever computes in Python gives it up only every 5 ms.
_PIECE = 4 << 20
_POLYNOMIAL = 0xEDB88320  # of CRC-32, the highest power in the lowest bit
_ONE = 1 << 31


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32 of a tensor's bytes; ``before`` is that of bytes that precede them."""
    return zlib.crc32(data, before)


def joined(first: int, second: int, length: int) -> int:
    """CRC-32 of what has the sum ``first``, followed by ``length`` bytes that have the sum ``second``."""
    return _times(_shift(length), first) ^ second


def checksum_metadata(sums: Mapping[str, int]) -> dict[str, str]:
    """The entry of a file's metadata that :class:`SumCheck` reads."""
    return {_SUMS: json.dumps({name: f"{value:08x}" for name, value in sums.items()}, separators=(",", ":"))}


class SumCheck:
    """Reads files in threads from when it is made, to compare them with the checksums in their metadata.

    So tensors of one shape that were swapped, and altered bytes, are noticed. A file without checksums passes. Nothing
    of a file stays in memory.
    """

    def __init__(self, layouts: Iterable[FileLayout]) -> None:
        self._files: list[tuple[FileLayout, dict[str, int], list[tuple[int, Future[int]]]]] = []
        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="qua2sedimo-sums")
        weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)  # if nobody waits for the result
        for layout in layouts:
            sums = _stored_sums(layout)
            if sums is not None:
                pieces = _pieces(layout)
                futures = [(end - begin, pool.submit(_sum_of, layout.path, begin, end)) for begin, end in pieces]
                self._files.append((layout, sums, futures))

    def result(self) -> None:
        """Wait for the end; raise :class:`Qua2SeDiMoError` naming a tensor that has not its checksum."""
        try:
            for layout, sums, pieces in self._files:
                lacking = [name for name in layout.spans if not 0 <= sums.get(name, -1) < 1 << 32]
                if lacking:
                    raise Qua2SeDiMoError(f"tensor '{lacking[0]}' in {layout.path} has no checksum", DAMAGED_FILE)
                found = _join((piece.result(), length) for length, piece in pieces)
                wanted = _join((sums[name], end - begin) for name, (begin, end) in layout.spans.items())
                if found != wanted:
                    raise Qua2SeDiMoError(f"{_wrong(layout, sums)} is not what was exported", DAMAGED_FILE)
        except OSError as error:
            raise Qua2SeDiMoError(f"cannot read a file of the checkpoint: {error}", DAMAGED_FILE) from error


def check_sums(path: Path) -> None:
    """Compare the tensors of one file with their checksums, as :class:`SumCheck` does."""
    SumCheck([read_layout(path)]).result()


def _stored_sums(layout: FileLayout) -> dict[str, int] | None:
    """The checksums in a file's metadata; None if it has none."""
    stored = layout.metadata.get(_SUMS)
    if stored is None:
        return None
    try:
        sums = {name: int(value, 16) for name, value in json.loads(stored).items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Qua2SeDiMoError(f"{layout.path} has unreadable checksums: {error}", DAMAGED_FILE) from error
    return sums


def _pieces(layout: FileLayout) -> list[tuple[int, int]]:
    """Bytes (begin, end) of the file that together are all its tensors'."""
    if not layout.spans:
        return []
    begin, end = min(b for b, _ in layout.spans.values()), max(e for _, e in layout.spans.values())
    return [(at, min(at + _PIECE, end)) for at in range(begin, end, _PIECE)]


def _sum_of(path: Path, begin: int, end: int) -> int:
    """CRC-32 of these bytes of a file; of fewer if it was cut meanwhile."""
    with path.open("rb", buffering=0) as handle:
        handle.seek(begin)
        found, left = 0, end - begin
        while left and (data := handle.read(left)):
            found, left = checksum(data, found), left - len(data)
    return found


def _wrong(layout: FileLayout, sums: Mapping[str, int]) -> str:
    """The first tensor, in order of the file, that has not its checksum, and the file."""
    for name, (begin, end) in layout.spans.items():
        if _sum_of(layout.path, begin, end) != sums[name]:
            return f"tensor '{name}' in {layout.path}"
    return str(layout.path)


def _join(parts: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of stretches that follow each other, each given as (its sum, its length)."""
    total = 0
    for found, length in parts:
        total = joined(total, found, length)
    return total


@cache
def _shift(length: int) -> int:
    """x^(8·length) modulo the polynomial: what a sum is multiplied by when so many bytes follow."""
    power, result = _ONE >> 8, _ONE
    while length:
        if length & 1:
            result = _times(result, power)
        power = _times(power, power)
        length >>= 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials over two elements, modulo CRC-32's."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
