"""``POST /rerank``: ranking in the form that Cohere's and Jina's rerankers made common.

The query is a history, the documents are candidates, and the relevance is the probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StrictBool, create_model
from pydantic_core import PydanticCustomError

from recbole_llamarec.given_candidates import Candidate, RankedCandidate
from recbole_llamarec.serve.limits import Limits
from recbole_llamarec.serve.schema import (
    TAGS,
    WHOLE,
    Frozen,
    RequestModels,
    TextItem,
    Token,
    one_of_forms,
)

TOKEN, TEXT, ITEM, TOKENS, TITLES = TAGS
ALONE = RankedCandidate(place=0, title="", score=0.0)  # what has no rival is certain


class ItemDocument(Frozen):
    """An item of the data set, by its token."""

    item: Token


Document = str | TextItem | ItemDocument


class RerankRequest(Frozen):
    """Rank documents for a history, as Cohere's and Jina's rerankers take it."""

    query: str | tuple[str, ...]
    documents: tuple[Document, ...]
    top_n: int | None
    return_documents: bool
    model: str | None

    @property
    def tokens(self) -> tuple[str, ...]:
        """The history's item tokens; none where it is given by titles."""
        return () if isinstance(self.query, str) else self.query

    @property
    def history(self) -> list[Candidate]:
        """The history as ``Recommender.rank_many`` takes it."""
        if isinstance(self.query, str):
            return [{"text": title} for title in titles_of(self.query)]
        return list(self.query)

    @property
    def items(self) -> tuple[str, ...]:
        """Tokens of the documents that are given by them."""
        return tuple(own.item for own in self.documents if isinstance(own, ItemDocument))

    @property
    def distinct(self) -> dict[tuple[bool, str], list[int]]:
        """The places of each distinct document, by whether it is an item and by token or text."""
        places: dict[tuple[bool, str], list[int]] = {}
        for place, own in enumerate(self.documents):
            places.setdefault(_key(own), []).append(place)
        return places

    @property
    def pool(self) -> list[Candidate]:
        """The distinct documents as ``Recommender.rank_many`` takes them."""
        return [name if is_item else {"text": name} for is_item, name in self.distinct]


class RerankDocument(BaseModel):
    """A document of the request."""

    text: str = Field(description="As it was given; an item's title.")


class RerankResult(BaseModel):
    """One document of a result."""

    index: int = Field(description="Its place in the request, from 0.")
    relevance_score: float = Field(
        description="The language model's probability that it is next, among the documents; where "
        "these are more than one prompt shows, among those of its prompt."
    )
    document: RerankDocument | None = Field(None, description="Where return_documents is true.")


class RerankAnswer(BaseModel):
    """The documents, best first."""

    results: list[RerankResult]


def titles_of(query: str) -> list[str]:
    """The titles of a query, one a line; empty lines are none."""
    return [line.strip() for line in query.split("\n") if line.strip()]


def rerank_request(limits: Limits, requests: RequestModels) -> type[RerankRequest]:
    """The form of a request under some limits, which its JSON schema states.

    Args:
        limits: of the service.
        requests: the other forms.
    """

    def within_limits(query: str) -> str:
        titles = titles_of(query)
        if len(titles) > limits.max_history:
            raise PydanticCustomError("too_long", f"At most {limits.max_history} titles")
        if any(len(title) > limits.max_text for title in titles):
            raise PydanticCustomError("too_long", f"At most {limits.max_text} characters a title")
        return query

    titles = Annotated[str, AfterValidator(within_limits)]
    tokens = Annotated[tuple[Token, ...], Field(max_length=limits.max_history)]
    query = one_of_forms(
        {TITLES: titles, TOKENS: tokens},
        lambda value: TITLES if isinstance(value, str) else TOKENS,
    )
    text = Annotated[str, Field(min_length=1, max_length=limits.max_text)]
    document = one_of_forms({TOKEN: text, TEXT: requests.text_item, ITEM: ItemDocument}, _form)
    about_query = (
        "The history, the oldest first: titles, one a line, at most "
        f"{limits.max_history} of {limits.max_text} characters; or a list of item tokens."
    )
    about_documents = "Titles; an item of the data set by its token. Equal ones are ranked once."
    about_top = "Most results; all if left out."
    about_model = "Not read: the service has one model."
    return create_model(
        "RerankRequest",
        __base__=RerankRequest,
        __doc__=RerankRequest.__doc__,
        query=(query, Field(description=about_query)),
        documents=(
            tuple[document, ...],  # type: ignore[valid-type]
            Field(min_length=1, max_length=limits.max_candidates, description=about_documents),
        ),
        top_n=(Annotated[int, Field(ge=1), WHOLE] | None, Field(None, description=about_top)),
        return_documents=(StrictBool, Field(False, description="Return the documents, too.")),
        model=(str | None, Field(None, description=about_model)),
    )


def answer_of(
    request: RerankRequest, ranked: Sequence[RankedCandidate], titles: dict[str, str]
) -> dict[str, Any]:
    """The answer in JSON's types.

    Args:
        request: what was asked.
        ranked: its pool, best first.
        titles: of the documents that are given by item tokens.
    """
    places = list(request.distinct.values())
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": math.exp(own.score)}
        for own in ranked
        for index in places[own.place]
    ][: request.top_n]
    if request.return_documents:
        for result in results:
            is_item, name = _key(request.documents[result["index"]])
            result["document"] = {"text": titles[name] if is_item else name}
    return {"results": results}


def _key(document: Document) -> tuple[bool, str]:
    """Whether a document is an item of the data set, and its token or text."""
    if isinstance(document, ItemDocument):
        return True, document.item
    return False, document if isinstance(document, str) else document.text


def _form(value: object) -> str:
    """The tag of a document's form."""
    if isinstance(value, str):
        return TOKEN
    return ITEM if isinstance(value, dict) and "item" in value else TEXT
