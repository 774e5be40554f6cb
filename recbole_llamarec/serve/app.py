"""The service's routes, on FastAPI."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.serve.errors import ServiceError, documented, handle_errors
from recbole_llamarec.serve.limits import Limits
from recbole_llamarec.serve.middleware import Authorize, CheckHost, Observe, ReadBody
from recbole_llamarec.serve.pages import page
from recbole_llamarec.serve.rerank import RerankAnswer, RerankRequest, rerank_request
from recbole_llamarec.serve.schema import (
    MAX_FOUND,
    MAX_TOKEN,
    Health,
    ItemsAnswer,
    ModelAnswer,
    RankAnswer,
    RankerState,
    RecommendAnswer,
    RequestModels,
)
from recbole_llamarec.serve.search import TitleSearch
from recbole_llamarec.serve.service import Service
from recbole_llamarec.version import __version__

DESCRIPTION = (
    "Recommends for histories and ranks given candidates. Every error has the same form: the field "
    "of the request, or null, and a message."
)
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/health")  # need no token: they tell nothing
COMPUTED = (400, 401, 408, 413, 422, 503, 504)


def create_app(
    recommender: Recommender,
    limits: Limits,
    token: str | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        recommender: a trained model; from now on only the service may use it.
        limits: of requests and of the queue.
        token: what requests must carry, but for the pages, the documentation and ``/health``.
        hosts: names that requests may give in the header Host, beside this machine's own; any if
            left out.

    Returns:
        the application; ``state.service`` is its :class:`Service`.
    """
    service = Service(recommender, limits)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.warm_up()
        yield
        service.worker.close(limits.deadline)

    app = FastAPI(
        title="LlamaRec",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own loads its scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
    )
    app.state.service = service
    handle_errors(app)
    requests = RequestModels(limits, recommender.model.n_items - 1)
    _add_results(app, service, requests)
    _add_rerank(app, service, rerank_request(limits, requests))
    _add_catalogue(app, recommender, requests.max_k)
    _add_state(app, service)
    _add_page(app, "/", "page.html")
    _add_page(app, "/docs", "docs.html")
    paths = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    # the last one added is the first to see a request
    app.add_middleware(ReadBody, max_body=limits.max_body, deadline=limits.deadline)
    if token:
        app.add_middleware(Authorize, token=token, open_paths=OPEN_PATHS)
    if hosts is not None:
        app.add_middleware(CheckHost, names=hosts)
    app.add_middleware(Observe, metrics=service.metrics, paths=paths)
    return app


def _add_results(app: FastAPI, service: Service, requests: RequestModels) -> None:
    @app.post("/recommend", response_model=RecommendAnswer, responses=documented(*COMPUTED))
    async def recommend(body: requests.recommend, request: Request) -> JSONResponse:  # type: ignore[name-defined]
        """The best items of the catalogue for a history."""
        return JSONResponse(await service.answer(body, request.receive))

    @app.post("/rank", response_model=RankAnswer, responses=documented(*COMPUTED, 409))
    async def rank(body: requests.rank, request: Request) -> JSONResponse:  # type: ignore[name-defined]
        """Given candidates in the order of the language model, whatever the retriever thinks."""
        return JSONResponse(await service.answer(body, request.receive))


def _add_rerank(app: FastAPI, service: Service, request_model: type[RerankRequest]) -> None:
    @app.post("/rerank", response_model=RerankAnswer, responses=documented(*COMPUTED, 409))
    async def rerank(body: request_model, request: Request) -> JSONResponse:  # type: ignore[valid-type]
        """What POST /rank does, in the form of Cohere's and Jina's rerankers."""
        return JSONResponse(await service.answer(body, request.receive))


def _add_catalogue(app: FastAPI, recommender: Recommender, max_k: int) -> None:
    model, tokens, texts = recommender.model, recommender.tokens, list(recommender.texts)
    search = TitleSearch(texts, model.item_counts)

    @app.get("/items", response_model=ItemsAnswer, responses=documented(401, 422))
    def items(
        query: Annotated[str, Query(max_length=MAX_TOKEN, description="Part of a title.")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 10,
    ) -> JSONResponse:
        """Items by title: what begins with the query first, then the more frequent."""
        ids = search.find(query, limit)
        return JSONResponse({"items": [{"item": str(tokens[i]), "text": texts[i]} for i in ids]})

    @app.get("/model", responses=documented(401))
    def about() -> ModelAnswer:
        """What is served."""
        fusion, scorer = model.fusion, recommender.language_model
        return ModelAnswer(
            dataset=recommender.dataset.dataset_name,
            retriever=model.settings.retriever,
            ranker=_state_of_ranker(recommender),
            ranking_method=None if scorer is None else scorer.name,
            weights={name: (fusion.weights or {}).get(name, 0.0) for name in model.scorer_names},
            with_retriever=fusion.with_retriever,
            n_items=model.n_items - 1,
            n_candidates=model.settings.rerank_candidates,
            max_k=max_k,
        )


def _state_of_ranker(recommender: Recommender) -> RankerState:
    if recommender.language_model is None:
        return "none"
    return "used" if recommender.is_language_model_used else "no weight"


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=documented(503))
    async def health() -> Health:
        """Whether requests are taken; needs no token."""
        if not service.worker.is_accepting:
            raise ServiceError(503)
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse, responses=documented(401))
    def metrics() -> PlainTextResponse:
        """Prometheus' metrics."""
        return PlainTextResponse(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, path: str, name: str) -> None:
    response = page(name)

    @app.get(path, include_in_schema=False)
    async def static() -> HTMLResponse:
        return response
