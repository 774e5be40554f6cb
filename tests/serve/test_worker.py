"""The worker: what waits makes a batch, in order, and what nobody waits for is not computed."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from recbole_llamarec.serve.batching import BatchWorker, QueueFull, Stopping


@pytest.fixture
def held():
    """A worker whose first batch, of job 0, has begun and ends when ``opened`` is set."""
    begun, opened, batches = threading.Event(), threading.Event(), []

    def compute(jobs):
        batches.append(list(jobs))
        begun.set()
        assert opened.wait(10)
        return [ZeroDivisionError(job) if job < 0 else 10 * job for job in jobs]

    worker = BatchWorker(compute, queue_size=6, max_batch=4)
    first = worker.submit(0)
    assert begun.wait(10)
    yield worker, first, opened, batches
    opened.set()
    worker.close(10)


def test_what_waits_is_computed_together_in_the_order_of_arrival(held):
    worker, first, opened, batches = held
    futures = [worker.submit(job) for job in range(1, 7)]
    assert len(worker) == 6
    with pytest.raises(QueueFull):
        worker.submit(7)
    opened.set()
    assert [future.result(10) for future in (first, *futures)] == [0, 10, 20, 30, 40, 50, 60]
    assert batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_what_is_cancelled_before_it_begins_leaves_the_queue(held):
    worker, first, opened, batches = held
    futures = [worker.submit(job) for job in (1, 2, 3)]
    assert futures[1].cancel()
    assert not first.cancel()  # it has begun
    assert len(worker) == 2
    opened.set()
    assert futures[2].result(10) == 30
    assert batches == [[0], [1, 3]]


def test_an_exception_reaches_the_one_it_is_for(held):
    worker, _, opened, _ = held
    good, bad = worker.submit(1), worker.submit(-1)
    opened.set()
    assert good.result(10) == 10
    with pytest.raises(ZeroDivisionError):
        bad.result(10)


def test_a_computation_that_fails_as_a_whole_ends_neither_thread_nor_waiting():
    def compute(jobs):
        return [1 / job for job in jobs]

    worker = BatchWorker(compute, queue_size=2, max_batch=2)
    with pytest.raises(ZeroDivisionError):
        worker.submit(0).result(10)
    assert worker.submit(2).result(10) == 0.5
    worker.close(10)


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, CancelledError]
)
@pytest.mark.parametrize("is_raised", [True, False], ids=["raised", "returned"])
def test_no_exception_ends_the_thread(error, is_raised):
    def compute(jobs):
        if jobs == [0] and is_raised:
            raise error("over")
        return [error("over") if job == 0 else job for job in jobs]

    worker = BatchWorker(compute, queue_size=2, max_batch=2)
    with pytest.raises(RuntimeError, match=f"{error.__name__} in the worker's thread: over"):
        worker.submit(0).result(10)
    assert worker.submit(2).result(10) == 2
    assert worker.is_accepting
    worker.close(10)


def test_answers_that_are_too_few_fail_their_jobs():
    worker = BatchWorker(lambda jobs: [] if 0 in jobs else jobs, queue_size=2, max_batch=2)
    with pytest.raises(RuntimeError, match="1 jobs have 0 answers"):
        worker.submit(0).result(10)
    assert worker.submit(2).result(10) == 2
    worker.close(10)


def test_a_thread_that_has_ended_takes_no_jobs(held, monkeypatch):
    worker, first, opened, _ = held
    monkeypatch.setattr(worker, "_next_batch", lambda: None)
    opened.set()
    assert first.result(10) == 0
    worker._thread.join(10)
    with pytest.raises(Stopping):
        worker.submit(1)


def test_closing_finishes_what_waits_and_takes_nothing_new(held):
    worker, first, opened, _ = held
    last = worker.submit(5)
    worker.is_accepting = False
    with pytest.raises(Stopping):
        worker.submit(6)
    opened.set()
    worker.close(10)
    assert (first.result(0), last.result(0)) == (0, 50)
    assert not worker._thread.is_alive()
