"""One thread that computes what waits for it, in batches; it knows nothing of HTTP or models."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from itertools import islice
from typing import Generic, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class QueueFull(Exception):
    """As many jobs wait as may wait."""


class Stopping(Exception):
    """The worker takes no new jobs."""


class BatchWorker(Generic[Job, Answer]):
    """Computes jobs on a thread of its own: what waits when it is free makes the next batch.

    There is no delay to fill a batch. A job whose future is cancelled before its batch has begun
    leaves the queue.

    Args:
        compute: takes the jobs of a batch, gives an answer or an exception for each, in order. It
            is called by the worker's thread alone.
        queue_size: most jobs that wait.
        max_batch: most jobs of a batch.

    Attributes:
        is_accepting: whether new jobs are taken; a signal handler may set it to ``False``.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Job]], Sequence[Answer | Exception]],
        queue_size: int,
        max_batch: int,
    ) -> None:
        self._compute = compute
        self._queue_size = queue_size
        self._max_batch = max_batch
        self._waiting: dict[Future[Answer], Job] = {}  # in the order of arrival
        self._changed = threading.Condition()
        self._is_closed = False
        self.is_accepting = True
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    def submit(self, job: Job) -> Future[Answer]:
        """Queue a job.

        Raises:
            QueueFull, Stopping: the job is not taken.
        """
        future: Future[Answer] = Future()
        with self._changed:
            if not self.is_accepting:
                raise Stopping
            if len(self._waiting) >= self._queue_size:
                raise QueueFull
            self._waiting[future] = job
            self._changed.notify()
        future.add_done_callback(self._forget)
        return future

    def close(self, timeout: float) -> None:
        """Take no new jobs, finish those that wait, and end the thread, within some seconds."""
        self.is_accepting = False
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _forget(self, future: Future[Answer]) -> None:
        with self._changed:
            self._waiting.pop(future, None)

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                begun = {f: job for f, job in batch.items() if f.set_running_or_notify_cancel()}
                if not begun:
                    continue
                for future, answer in zip(begun, self._answers(list(begun.values())), strict=True):
                    if isinstance(answer, BaseException):
                        future.set_exception(_failure(answer))
                    else:
                        future.set_result(answer)
        finally:
            self.is_accepting = False  # whatever ended it: jobs would wait for ever

    def _answers(self, jobs: list[Job]) -> Sequence[Answer | BaseException]:
        try:
            answers = self._compute(jobs)
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(jobs)} jobs have {len(answers)} answers.")
            return answers
        except BaseException as error:  # SystemExit too: those who wait must hear of it
            return [error] * len(jobs)

    def _next_batch(self) -> dict[Future[Answer], Job]:
        """Wait for jobs; none where the worker is closed and has finished."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            batch = dict(islice(self._waiting.items(), self._max_batch))
            for future in batch:
                del self._waiting[future]
            return batch


def _failure(error: BaseException) -> Exception:
    """An exception as a future may carry it.

    What ends a program or a task where it is raised (SystemExit, CancelledError), and
    StopIteration, which asyncio's futures refuse, become a ``RuntimeError``.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | CancelledError):
        return error
    failure = RuntimeError(f"{type(error).__name__} in the worker's thread: {error}")
    failure.__cause__ = error
    return failure
