"""Jobs, their outcomes, and retries.

A job and its result are text, so that they mean the same in this process and on another machine.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.system.machine import host, release_memory

#: Attempts before a job fails.
ATTEMPTS = 3

Work = Callable[[str], str]


@dataclass(frozen=True)
class Job:
    key: int
    content: str


@dataclass(frozen=True)
class Outcome:
    """A job's result, or its last error; who ran it, and the number of attempts."""

    job: Job
    attempts: int
    host: str
    worker: str
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Reply:
    """The result of one attempt. ``refusal``: message and remedy of an input error, which every job would have."""

    result: str | None = None
    error: str | None = None
    refusal: tuple[str, str | None] | None = None


def attempt(work: Work, content: str) -> Reply:
    """Run the job; catches every exception but interruptions."""
    try:
        return Reply(result=work(content))
    except Qua2SeDiMoError as error:
        return Reply(refusal=(error.message, error.remedy))
    except Exception as error:
        reply = Reply(error=f"{type(error).__name__}: {error}")
    release_memory()  # outside the handler, which refers to the frames of the failed job
    return reply


class Queue:
    """Pending jobs: retries first, then new ones, taken from the iterable on demand."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._new, self._again = iter(jobs), deque[Job]()
        self._tried: Counter[int] = Counter()

    def take(self) -> Job | None:
        """The next job; None if there is none at present."""
        job = self._again.popleft() if self._again else next(self._new, None)
        if job is not None:
            self._tried[job.key] += 1
        return job

    def more(self) -> bool:
        """Whether :meth:`take` would return a job now."""
        if not self._again and (job := next(self._new, None)) is not None:
            self._again.append(job)
        return bool(self._again)

    def done(self, job: Job, result: str, host: str, worker: str) -> Outcome:
        return Outcome(job, self._tried[job.key], host, worker, result=result)

    def failed(self, job: Job, error: str, host: str, worker: str) -> Outcome | None:
        """The outcome of a job whose last attempt failed; None if it will be retried."""
        if self._tried[job.key] < ATTEMPTS:
            self._again.append(job)
            return None
        return Outcome(job, self._tried[job.key], host, worker, error=error)


def run_here(
    work: Work, jobs: Iterable[Job], stop: Callable[[], bool] = lambda: False
) -> Generator[Outcome, None, None]:
    """Run the jobs in this process, in order, until there are no more or ``stop()``.

    A job that raises is retried; after the third attempt the outcome has its error. A :class:`Qua2SeDiMoError` of the
    work is raised at once.
    """
    queue, me = Queue(jobs), str(os.getpid())
    while not stop() and (job := queue.take()) is not None:
        reply = attempt(work, job.content)
        outcome = settle(queue, job, reply, host(), me)
        if outcome is not None:
            yield outcome


def settle(queue: Queue, job: Job, reply: Reply, host: str, worker: str) -> Outcome | None:
    """The outcome after an attempt, None if the job will be retried; a refusal is raised."""
    if reply.refusal is not None:
        raise Qua2SeDiMoError(*reply.refusal)
    if reply.result is not None:
        return queue.done(job, reply.result, host, worker)
    return queue.failed(job, reply.error or "no result", host, worker)
