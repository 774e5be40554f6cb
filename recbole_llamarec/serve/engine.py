"""Requests in, answers out: the recommender behind the service, for one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from recbole_llamarec.finite import naming_stage
from recbole_llamarec.given_candidates import Candidate
from recbole_llamarec.recommender import Recommendation, Recommender
from recbole_llamarec.serve.errors import ServiceError
from recbole_llamarec.serve.rerank import ALONE, RerankRequest, answer_of
from recbole_llamarec.serve.schema import RankRequest, RecommendRequest

Request = RecommendRequest | RankRequest | RerankRequest
Answer = dict[str, Any]
R = TypeVar("R", RecommendRequest, RankRequest, RerankRequest)


class Engine:
    """Computes batches of requests, all of one kind in one call of the recommender.

    Args:
        recommender: used by one thread only.
    """

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        self.n_candidates: int = recommender.model.settings.rerank_candidates

    @property
    def max_candidates(self) -> int | None:
        """Most candidates of one prompt; ``None`` is no limit, or no language model."""
        scorer = self.recommender.language_model
        return None if scorer is None else scorer.ranker.max_candidates

    def compute(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        """An answer or an exception for each request; equal requests are computed once.

        A request that fails does not make others fail: each is then computed by itself.
        """
        distinct = list(dict.fromkeys(requests))
        to_recommend = [r for r in distinct if isinstance(r, RecommendRequest)]
        to_rank = [r for r in distinct if isinstance(r, RankRequest)]
        to_rerank = [r for r in distinct if isinstance(r, RerankRequest)]
        answers: dict[Request, Answer | Exception] = {}
        answers.update(zip(to_recommend, _each(self._recommend, to_recommend), strict=True))
        answers.update(zip(to_rank, _each(self._rank, to_rank), strict=True))
        answers.update(zip(to_rerank, _each(self._rerank, to_rerank), strict=True))
        return [answers[request] for request in requests]

    def check(self, request: Request) -> None:
        """Refuse what cannot be computed, before it is queued; any thread may call it.

        Raises:
            ServiceError: names the field.
        """
        if not isinstance(request, RecommendRequest) and self.recommender.prompts is None:
            raise ServiceError(409)
        if isinstance(request, RerankRequest):
            self._check_tokens("query", request.tokens)
            self._check_tokens("documents", request.items)
            return
        self._check_tokens("history", request.history)
        if isinstance(request, RankRequest):
            self._check_pool(request)

    def _check_pool(self, request: RankRequest) -> None:
        pool = request.candidates
        if len(set(pool)) < len(pool):
            raise ServiceError(422, "A candidate stands there twice.", "candidates")
        most = self.max_candidates
        if request.prompt and most is not None and len(pool) > most:
            raise ServiceError(
                422,
                f"More than {most} candidates are ranked in several prompts; "
                "give fewer to see the prompt.",
                "prompt",
            )
        self._check_tokens("candidates", [item for item in pool if isinstance(item, str)])

    def _check_tokens(self, field: str, tokens: Sequence[str]) -> None:
        try:
            self.recommender.ids_of(tokens)
        except ValueError as error:
            raise ServiceError(422, str(error), field) from error

    def _recommend(self, requests: Sequence[RecommendRequest]) -> list[Answer]:
        recommender, fusion = self.recommender, self.recommender.model.fusion
        has_prompt = recommender.is_language_model_used and recommender.prompts is not None
        # a prompt shows the first candidates, so that all of them are needed to tell it
        depths = [max(r.k, self.n_candidates) if r.prompt else r.k for r in requests]
        histories = [request.history for request in requests]
        answers = []
        results = recommender.recommend(histories, max(depths))
        for request, result in zip(requests, results, strict=True):
            prompt = None
            asked = [item for item in result if item.probability is not None]
            if request.prompt and has_prompt and len(asked) > 1:  # one alone is certain
                shown = sorted(asked, key=_retriever_rank)
                prompt = recommender.prompt(request.history, [str(i.item) for i in shown])
            items = [asdict(item) for item in result[: request.k]]
            answers.append({"items": items, "is_reranked": fusion.changes_order, "prompt": prompt})
        return answers

    def _rank(self, requests: Sequence[RankRequest]) -> list[Answer]:
        histories = [request.history for request in requests]
        pools = [
            [item if isinstance(item, str) else {"text": item.text} for item in request.candidates]
            for request in requests
        ]
        results = self.recommender.rank_many(histories, pools)
        return [
            {
                "items": [asdict(item) for item in result],
                "prompt": self._prompt(request, pool) if request.prompt else None,
            }
            for request, pool, result in zip(requests, pools, results, strict=True)
        ]

    def _rerank(self, requests: Sequence[RerankRequest]) -> list[Answer]:
        recommender = self.recommender
        rivals = [request for request in requests if len(request.pool) > 1]
        ranked = recommender.rank_places(
            [request.history for request in rivals], [request.pool for request in rivals]
        )
        by_request = dict(zip(rivals, ranked, strict=True))
        answers = []
        for request in requests:
            ids = recommender.ids_of(request.items)
            titles = {
                token: recommender.texts[i] for token, i in zip(request.items, ids, strict=True)
            }
            answers.append(answer_of(request, by_request.get(request, [ALONE]), titles))
        return answers

    def _prompt(self, request: RankRequest, pool: Sequence[Candidate]) -> str:
        return self.recommender.prompt(request.history, pool)


def _retriever_rank(item: Recommendation) -> int:
    return item.retriever_rank or 0


def _each(compute: Callable[[Sequence[R]], list[Answer]], requests: list[R]) -> list:
    """Answers to all requests at once; where that fails, to each by itself, or its exception."""
    if not requests:
        return []
    try:
        with naming_stage("service"):
            return compute(requests)
    except Exception as error:
        if len(requests) == 1:
            return [error]
    return [_each(compute, [request])[0] for request in requests]
