"""Work on threads: the rows of one tensor, or layers side by side, never both at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch

_WORTH_SPREADING = 1 << 18  # weights; below, handing work over costs more than it saves
_here = threading.local()

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def alone() -> Iterator[None]:
    """Within, :func:`spread` uses only the calling thread: other threads have work of their own."""
    before = getattr(_here, "alone", False)
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before


def spread(kernel: Callable[[int, int], object], rows: int, weights: int) -> None:
    """Call ``kernel(first, last)`` for parts of ``range(rows)``, on as many threads as torch uses."""
    threads = min(torch.get_num_threads(), rows)
    if threads <= 1 or weights < _WORTH_SPREADING or getattr(_here, "alone", False):
        kernel(0, rows)
        return
    cuts = [rows * i // threads for i in range(threads + 1)]
    waiting = [_pool(os.getpid()).submit(kernel, a, b) for a, b in pairwise(cuts[1:])]
    kernel(0, cuts[1])
    for part in waiting:
        part.result()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One a process: the threads of a pool do not survive a fork."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="qua2sedimo")


def each(work: Callable[[T], R], items: Sequence[T], threads: int) -> Iterator[R]:
    """``work(item)`` for every item, in order of the items, on ``threads`` threads, each of which computes alone.

    The first exception is raised here; items not begun by then are skipped.
    """
    before = torch.get_num_threads()

    def one(item: T) -> R:
        with alone():
            return work(item)

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(one, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the workers' setting is also that of threads to come
