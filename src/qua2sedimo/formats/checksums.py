"""CRC-32 checksums of the tensors of safetensors files, stored in the metadata and verified in background threads.

A file is read in pieces that span tensors. CRC-32 checksums of adjacent byte ranges can be combined, so the checksums
in the metadata give the expected checksum of the whole file; single tensors are checked only if it differs.
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
_THREADS = 4  # more would wait for the disk
# Large: the GIL is taken twice per piece, and a thread that computes in Python releases it only every 5 ms.
_PIECE = 4 << 20
_POLYNOMIAL = 0xEDB88320  # of CRC-32, the highest power in the lowest bit
_ONE = 1 << 31


def checksum(data: bytes | memoryview, before: int = 0) -> int:
    """CRC-32 of a tensor's bytes; ``before`` is the CRC-32 of the bytes that precede them."""
    return zlib.crc32(data, before)


def joined(first: int, second: int, length: int) -> int:
    """CRC-32 of bytes with CRC-32 ``first``, followed by ``length`` bytes with CRC-32 ``second``."""
    return _times(_shift(length), first) ^ second


def checksum_metadata(sums: Mapping[str, int]) -> dict[str, str]:
    """The metadata entry that :class:`SumCheck` reads."""
    return {_SUMS: json.dumps({name: f"{value:08x}" for name, value in sums.items()}, separators=(",", ":"))}


class SumCheck:
    """Compares files with the checksums in their metadata; its threads start reading at once.

    Altered bytes are detected, and swapped tensors of equal shape. A file without checksums passes. No file contents
    stay in memory.
    """

    def __init__(self, layouts: Iterable[FileLayout]) -> None:
        self._files: list[tuple[FileLayout, dict[str, int], list[tuple[int, Future[int]]]]] = []
        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="qua2sedimo-sums")
        weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)  # if result() is never called
        for layout in layouts:
            sums = _stored_sums(layout)
            if sums is not None:
                pieces = _pieces(layout)
                futures = [(end - begin, pool.submit(_sum_of, layout.path, begin, end)) for begin, end in pieces]
                self._files.append((layout, sums, futures))

    def result(self) -> None:
        """Wait for the threads; raise :class:`Qua2SeDiMoError` naming a tensor whose checksum is missing or differs."""
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
        return {name: int(value, 16) for name, value in json.loads(stored).items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Qua2SeDiMoError(f"{layout.path} has unreadable checksums: {error}", DAMAGED_FILE) from error


def _pieces(layout: FileLayout) -> list[tuple[int, int]]:
    """Byte ranges (begin, end) of the file that together cover its tensors."""
    if not layout.spans:
        return []
    begin, end = min(b for b, _ in layout.spans.values()), max(e for _, e in layout.spans.values())
    return [(at, min(at + _PIECE, end)) for at in range(begin, end, _PIECE)]


def _sum_of(path: Path, begin: int, end: int) -> int:
    """CRC-32 of a byte range of a file; of fewer bytes if the file was truncated meanwhile."""
    with path.open("rb", buffering=0) as handle:
        handle.seek(begin)
        found, left = 0, end - begin
        while left and (data := handle.read(left)):
            found, left = checksum(data, found), left - len(data)
    return found


def _wrong(layout: FileLayout, sums: Mapping[str, int]) -> str:
    """The file, and its first tensor whose checksum differs."""
    for name, (begin, end) in layout.spans.items():
        if _sum_of(layout.path, begin, end) != sums[name]:
            return f"tensor '{name}' in {layout.path}"
    return str(layout.path)


def _join(parts: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of adjacent byte ranges, each given as (CRC-32, length)."""
    total = 0
    for found, length in parts:
        total = joined(total, found, length)
    return total


@cache
def _shift(length: int) -> int:
    """x^(8·length) modulo the polynomial: the factor of a CRC-32 that ``length`` bytes follow."""
    power, result = _ONE >> 8, _ONE
    while length:
        if length & 1:
            result = _times(result, power)
        power = _times(power, power)
        length >>= 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo the CRC-32 polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
