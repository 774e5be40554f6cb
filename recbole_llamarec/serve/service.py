"""One request's way to its answer: cache, queue, deadline, and a client that may go away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from starlette.types import Receive

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.serve.batching import BatchWorker, QueueFull, Stopping
from recbole_llamarec.serve.engine import Answer, Engine, Request
from recbole_llamarec.serve.errors import CLIENT_GONE, ServiceError, as_service_error
from recbole_llamarec.serve.limits import Limits
from recbole_llamarec.serve.metrics import Metrics
from recbole_llamarec.serve.schema import RankRequest, RecommendRequest


class Service:
    """Answers requests; all methods but :meth:`_compute` run in the event loop's thread.

    Args:
        recommender: only the worker's thread computes with it.
        limits: of queue, batches, cache and time.

    Raises:
        ValueError, OSError, ImportError: the language model cannot be loaded.
    """

    def __init__(self, recommender: Recommender, limits: Limits) -> None:
        self.engine = Engine(recommender)
        self._reads_prompts = recommender.prompts is not None  # loads the language model
        self.limits = limits
        self.worker = BatchWorker(self._compute, limits.queue, limits.max_batch)
        self.metrics = Metrics(lambda: len(self.worker))
        self._cache: OrderedDict[Request, Answer] = OrderedDict()  # the least recent first
        self._last_seconds = 0.0

    async def answer(self, request: Request, receive: Receive) -> Answer:
        """The answer to a request.

        Args:
            request: checked against the limits.
            receive: of ASGI, the body read; it tells when the client goes away.

        Raises:
            ServiceError: there is no answer, or nobody who waits for it.
        """
        self.engine.check(request)
        if request in self._cache:
            self._cache.move_to_end(request)
            self.metrics.from_cache.inc()
            return self._cache[request]
        try:
            future = self.worker.submit(request)
        except (QueueFull, Stopping) as error:
            raise ServiceError(503, retry_after=max(1, math.ceil(self._last_seconds))) from error
        answer = await self._in_time(asyncio.wrap_future(future), receive)
        if self.limits.cache:
            self._cache[request] = answer
            if len(self._cache) > self.limits.cache:
                self._cache.popitem(last=False)
        return answer

    async def _in_time(self, computing: asyncio.Future[Answer], receive: Receive) -> Answer:
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait(
                (computing, gone),
                timeout=self.limits.deadline,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if computing.done():
                return computing.result()
            raise ServiceError(CLIENT_GONE if gone.done() else 504)
        except ServiceError:
            raise
        except Exception as error:
            raise as_service_error(error) from error
        finally:
            gone.cancel()
            computing.cancel()  # what has not begun leaves the queue

    async def warm_up(self) -> None:
        """Compute something before the first client comes, so that what loads late is loaded."""
        recommender = self.engine.recommender
        tokens = tuple(map(str, recommender.tokens[1:3]))
        some: list[Request] = []
        if not getattr(recommender.model.retriever, "leaves_out", False):  # a table: of its users
            some.append(RecommendRequest(history=tokens, k=1, prompt=False))
        if self._reads_prompts:
            some.append(RankRequest(history=(), candidates=tokens, prompt=False))
        await asyncio.gather(*(asyncio.wrap_future(self.worker.submit(one)) for one in some))

    def _compute(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        begin = time.perf_counter()
        answers = self.engine.compute(requests)
        self._last_seconds = time.perf_counter() - begin
        self.metrics.batch.observe(len(requests))
        self.metrics.batch_seconds.observe(self._last_seconds)
        return cast("list[Answer | Exception]", answers)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
