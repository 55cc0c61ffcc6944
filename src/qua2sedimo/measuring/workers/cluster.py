"""Ray actors that run jobs, on this machine or on a running cluster.

Only text is sent: jobs, results, and the name of the function that creates an actor's work. Each actor loads the model,
the bank and the full-precision images by itself, once.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any

import torch

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.measuring.workers.jobs import Job, Outcome, Queue, Reply, Work, attempt, settle
from qua2sedimo.system.machine import host

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
#: How HTTP/2 begins, which Ray speaks: a client sends this, a server answers with a frame of settings (RFC 9113, 3.4).
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME, _KIND, _SETTINGS = 9, 3, b"\x04"
_MOST_DIGITS = 5  # of a port
#: Consecutive actors that may die before they are ready; then it is an error.
_STARTS = 3
#: How long there may be no actor that is ready or busy.
_PATIENCE_SECONDS = 1800
#: Only text goes through the object store; this is about Ray's minimum.
_OBJECT_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class Shares:
    """One actor's share of its machine: Ray's CPUs and GPUs, possibly fractions, and torch threads."""

    cpus: float
    gpus: float
    threads: int


def shares(count: int | None, nodes: Sequence[Mapping[str, float]]) -> tuple[int, Shares]:
    """(number of actors, the share of each) for the nodes' resources; by default one actor per GPU, else one per node.

    All actors get the same share, so that each fits on any node; k actors on a GPU get 1/k of it each.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    places = [node for node in nodes if node.get("GPU" if gpus else "CPU", 0) > 0]
    if not places:
        raise Qua2SeDiMoError("the Ray cluster has no node with a CPU", "Start its nodes with at least one CPU each.")
    count = count or gpus or len(places)
    a_gpu = math.ceil(count / gpus) if gpus else 0
    a_node = max(math.ceil(count / len(places)), *(a_gpu * int(node.get("GPU", 0)) for node in places))
    cores = min(node.get("CPU", 0) for node in places) / a_node
    cpus = float(math.floor(cores)) if cores >= 1 else _floor(cores)
    return count, Shares(cpus, _floor(1 / a_gpu) if gpus else 0.0, max(1, math.floor(cores)))


def _floor(value: float) -> float:
    """Round down to 1/10,000, Ray's resolution, so that k shares do not exceed the whole."""
    return math.floor(value * 10_000) / 10_000


class Actor:
    """Runs in a worker process: creates its work once, then runs jobs."""

    def open(self, factory: str, arguments: str, threads: int) -> dict[str, Any]:
        """Create the work, by ``factory`` ("module:function") from JSON ``arguments``; return host, worker, error."""
        torch.set_num_threads(threads)
        module, name = factory.split(":")

        def make(content: str) -> str:
            self._work: Work = getattr(import_module(module), name)(*json.loads(content))
            return ""

        return {**asdict(attempt(make, arguments)), "host": host(), "worker": str(os.getpid())}

    def do(self, content: str) -> dict[str, Any]:
        return asdict(attempt(self._work, content))


@dataclass
class _Hand:
    """The driver's view of a worker."""

    actor: Any
    host: str = ""
    worker: str = ""
    job: Job | None = None


@dataclass
class RayWorkers:
    """Runs jobs on ``count`` actors on this machine or, if ``address`` is given, on that cluster.

    A context manager: within it, :meth:`run` may be called several times, and reuses actors that are ready.

    ``factory`` ("module:function") and ``arguments`` (plain data) create an actor's work when it starts.
    ``started(ready, count)`` is called as actors become ready. With ``one_first`` the others are started when the first
    is ready: they read what it found out.
    """

    factory: str
    arguments: Sequence[Any]
    count: int | None = None
    address: str | None = None
    started: Callable[[int, int], object] = lambda ready, count: None
    one_first: bool = False
    _starting: dict[Any, _Hand] = field(default_factory=dict, init=False)
    _busy: dict[Any, _Hand] = field(default_factory=dict, init=False)
    _idle: list[_Hand] = field(default_factory=list, init=False)
    _lost_starts: int = field(default=0, init=False)
    _later: int = field(default=0, init=False)
    _lost: int = field(default=0, init=False)
    _opened_here: bool = field(default=False, init=False)

    def __enter__(self) -> RayWorkers:
        """Connect; actors are started by the first :meth:`run`, and live until the end of the ``with``."""
        ray = _ray()
        self._opened_here = not ray.is_initialized()
        if self._opened_here:
            _connect(ray, self.address)
        return self

    def __exit__(self, *exception: object) -> None:
        ray = _ray()
        for hand in (*self._starting.values(), *self._busy.values(), *self._idle):
            ray.kill(hand.actor)
        self._starting, self._busy, self._idle = {}, {}, []
        if self._opened_here:
            ray.shutdown()

    @property
    def width(self) -> int:
        """The number of actors that jobs are given to."""
        return self._shares()[0]

    def _shares(self) -> tuple[int, Shares]:
        return shares(self.count, [node["Resources"] for node in _ray().nodes() if node["Alive"]])

    def run(self, jobs: Iterable[Job], stop: Callable[[], bool] = lambda: False) -> Generator[Outcome, None, None]:
        """Outcomes as they arrive; after ``stop()`` only those of running jobs.

        A job whose actor dies or raises is retried, on a new actor if necessary; after the third attempt the outcome
        has its error. Raises :class:`Qua2SeDiMoError` if Ray is missing, cannot be reached, or no actor can be started.
        """
        ray = _ray()
        try:
            count, share = self._shares()
            if not (self._starting or self._idle):
                self._later, self._lost = count - 1 if self.one_first else 0, 0
                for _ in range(count - self._later):
                    self._start(ray, share)
            yield from self._drive(ray, share, count, Queue(jobs), stop)
        except ray.exceptions.RaySystemError as error:
            raise Qua2SeDiMoError(f"the Ray cluster was lost: {_line(error)}", _GO_ON) from error
        finally:  # nobody reads the results of jobs that are still running
            for hand in self._busy.values():
                ray.kill(hand.actor)
                self._lost += 1
            self._busy = {}

    def _drive(self, ray: Any, share: Shares, count: int, queue: Queue, stop: Callable[[], bool]) -> Iterator[Outcome]:
        alive = time.monotonic()
        while True:
            stopped = stop()
            while self._idle and not stopped and (job := queue.take()) is not None:
                hand = self._idle.pop()
                hand.job = job
                self._busy[hand.actor.do.remote(job.content)] = hand
            if not self._busy and (stopped or not queue.more()):
                return  # no jobs are left, or it was stopped
            while self._lost and not stopped and queue.more():  # starting takes seconds: only if there are jobs
                self._lost -= 1
                self._start(ray, share)
            if self._busy or self._idle:
                alive = time.monotonic()
            elif time.monotonic() - alive > _PATIENCE_SECONDS:
                raise Qua2SeDiMoError(f"no Ray worker was ready for {_PATIENCE_SECONDS // 60} minutes", _GO_ON)
            ready, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                if reference in self._starting:
                    self._opened(ray, reference, share)
                    self.started(len(self._busy) + len(self._idle), count)
                elif (outcome := self._finished(ray, reference, queue)) is not None:
                    yield outcome

    def _start(self, ray: Any, share: Shares) -> None:
        options = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": 0, "max_task_retries": 0}
        actor = ray.remote(Actor).options(**options, scheduling_strategy="SPREAD").remote()
        opening = actor.open.remote(self.factory, json.dumps(list(self.arguments)), share.threads)
        self._starting[opening] = _Hand(actor)

    def _opened(self, ray: Any, reference: Any, share: Shares) -> None:
        """Handle an actor that is ready, or that died before."""
        hand = self._starting.pop(reference)
        try:
            reply = ray.get(reference)
        except ray.exceptions.RayError as error:
            reply = {"error": f"it died: {_line(error)}", "host": ""}
        where = f"a worker on '{reply['host']}'" if reply["host"] else "a worker"
        if reply.get("refusal"):
            message, remedy = reply["refusal"]
            raise Qua2SeDiMoError(f"{where}: {message}", remedy)
        if reply.get("error"):
            self._lost_starts += 1
            ray.kill(hand.actor)
            if self._lost_starts >= _STARTS:
                raise Qua2SeDiMoError(f"{where} cannot start: {reply['error']}", _GO_ON)
            self._start(ray, share)
            return
        self._lost_starts = 0
        hand.host, hand.worker = reply["host"], reply["worker"]
        self._idle.append(hand)
        while self._later:
            self._later -= 1
            self._start(ray, share)

    def _finished(self, ray: Any, reference: Any, queue: Queue) -> Outcome | None:
        """Handle a finished job, or a dead actor, which is replaced if there are more jobs."""
        hand = self._busy.pop(reference)
        job, hand.job = hand.job, None
        assert job is not None
        try:
            reply = Reply(**ray.get(reference))
        except ray.exceptions.RayError as error:
            reply = Reply(error=f"its worker died: {_line(error)}")
            ray.kill(hand.actor)  # one that was only unreachable must not come back
            self._lost += 1
        else:
            self._idle.append(hand)
        return settle(queue, job, reply, hand.host, hand.worker)


def check_workers(address: str | None) -> None:
    """Raise :class:`Qua2SeDiMoError` if Ray is missing, or nothing answers at ``address`` (HOST:PORT)."""
    _ray()
    host_name, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host_name or not port.isdecimal() or "/" in host_name:
        return  # "auto", or a form that only Ray understands
    try:
        if len(port) > _MOST_DIGITS:
            raise OverflowError(f"port {port[:20]}…")
        with socket.create_connection((host_name, int(port)), _ANSWER_SECONDS) as connection:
            connection.sendall(_HTTP2)
            if connection.recv(_FRAME)[_KIND : _KIND + 1] != _SETTINGS:
                raise OSError("something else than Ray answers there")
    except (OSError, OverflowError, UnicodeError) as error:
        raise _unreachable(address, error) from error


_GO_ON = "All measurements are kept. When the cluster works again, run the same command to continue."


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would send usage reports
    try:
        return import_module("ray")
    except ImportError:
        raise Qua2SeDiMoError(
            "workers need Ray, which is not installed",
            "Install it with `pip install 'qua2sedimo[ray]'`, or measure in this process, without --workers and --ray.",
        ) from None


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # Ray also raises plain exceptions if its processes do not start in time
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> Qua2SeDiMoError:
    return Qua2SeDiMoError(
        f"cannot reach a Ray cluster at '{address}': {_line(error)}" if address else f"Ray: {_line(error)}",
        "Give --ray HOST:PORT as `ray start --head` prints it, or --workers alone to use this machine.",
    )


def _line(error: BaseException) -> str:
    """An error's message on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
