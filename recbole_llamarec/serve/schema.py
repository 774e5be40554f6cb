"""What the service reads and writes, as its OpenAPI document states it.

A request is a frozen value: it is itself the job that is queued and the key of its answer in the
cache.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    Tag,
    create_model,
)
from pydantic_core import PydanticCustomError

from recbole_llamarec.serve.limits import Limits

MAX_TOKEN = 200  # characters of an item token or of a search
MAX_FOUND = 50  # items of a search
UNIQUE: dict[str, Any] = {"uniqueItems": True}
RankerState = Literal["used", "no weight", "none"]
# Of the forms of a candidate, a document or a query; they show in pydantic's errors.
TAGS = ("(token)", "(text)", "(item)", "(tokens)", "(titles)")


def one_of_forms(forms: Mapping[str, Any], form_of: Callable[[object], str]) -> Any:
    """The type of a field that takes several forms.

    Args:
        forms: the type of each, by its tag.
        form_of: tag of a value.
    """
    tagged = tuple(Annotated[kind, Tag(tag)] for tag, kind in forms.items())
    return Annotated[Union[tagged], Discriminator(form_of)]  # noqa: UP007


def _number(value: object) -> object:
    """Refuse what Python would take for a number and JSON does not; 3.0 is an integer in JSON."""
    if isinstance(value, str | bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


WHOLE = BeforeValidator(_number)
Count = Annotated[int, WHOLE]
Token = Annotated[str, Field(max_length=MAX_TOKEN)]


class Frozen(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextItem(Frozen):
    """An item that the data set does not have."""

    text: str


class RecommendRequest(Frozen):
    """Recommend items of the catalogue for a history."""

    history: tuple[str, ...]
    k: int
    prompt: bool


class RankRequest(Frozen):
    """Rank given candidates for a history."""

    history: tuple[str, ...]
    candidates: tuple[str | TextItem, ...]
    prompt: bool


class RequestModels:
    """The forms of both requests under some limits, which their JSON schemas state.

    Args:
        limits: of the service.
        n_items: items of the catalogue.

    Attributes:
        recommend, rank: subclasses of :class:`RecommendRequest` and :class:`RankRequest`.
        text_item: subclass of :class:`TextItem`.
        max_k: most items of an answer.
    """

    def __init__(self, limits: Limits, n_items: int) -> None:
        self.max_k = most = min(limits.max_k, n_items)
        prompt = (StrictBool, Field(False, description="Return the language model's prompt, too."))
        about_history = "Item tokens in chronological order, the oldest first."
        at_most = Field(max_length=limits.max_history, description=about_history)
        at_least_one = Field(min_length=1, max_length=limits.max_history, description=about_history)
        self.recommend: type[RecommendRequest] = create_model(
            "RecommendRequest",
            __base__=RecommendRequest,
            __doc__=RecommendRequest.__doc__,
            history=(tuple[Token, ...], at_least_one),
            k=(Count, Field(min(10, most), ge=1, le=most, description="Items of the answer.")),
            prompt=prompt,
        )
        self.text_item: type[TextItem] = create_model(
            "TextItem",
            __base__=TextItem,
            __doc__=TextItem.__doc__,
            text=(str, Field(min_length=1, max_length=limits.max_text)),
        )
        candidate = one_of_forms(
            {TAGS[0]: Token, TAGS[1]: self.text_item},
            lambda value: TAGS[not isinstance(value, str)],
        )
        about_pool = "Item tokens, or texts of items that the data set does not have; each once."
        pool = Field(
            min_length=2,
            max_length=limits.max_candidates,
            description=about_pool,
            json_schema_extra=UNIQUE,
        )
        self.rank: type[RankRequest] = create_model(
            "RankRequest",
            __base__=RankRequest,
            __doc__=RankRequest.__doc__,
            history=(tuple[Token, ...], at_most),
            candidates=(tuple[candidate, ...], pool),  # type: ignore[valid-type]
            prompt=prompt,
        )


class Item(BaseModel):
    """One item of the catalogue."""

    item: str = Field(description="Its token.")
    text: str = Field(description="Its title.")


class RankedItem(BaseModel):
    """One item of a result."""

    item: str | None = Field(description="Its token; null for a candidate given by its text.")
    text: str = Field(description="Its title, as the prompt shows it where there is one.")
    rank: int = Field(description="In the result, from 1.")
    score: float | None = Field(
        description="Final score among the candidates, higher is better; null behind them, and "
        "where the order is the retriever's."
    )
    probability: float | None = Field(
        description="The language model's, among the candidates; null behind them, and where "
        "it was not asked."
    )
    retriever_rank: int | None = Field(
        description="Rank in the catalogue by the retriever alone; null for given candidates."
    )


class Prompted(BaseModel):
    """An answer with the text that the language model read."""

    prompt: str | None = Field(
        description="What the language model read; null where that was not requested or where it "
        "was not asked."
    )


class RecommendAnswer(Prompted):
    """The best items for a history, best first."""

    items: list[RankedItem]
    is_reranked: bool = Field(
        description="False: the order is the retriever's, since nothing else has a weight."
    )


class RankAnswer(Prompted):
    """The given candidates, best first."""

    items: list[RankedItem]


class ItemsAnswer(BaseModel):
    """Items whose titles match, better matches and more frequent items first."""

    items: list[Item]


class ModelAnswer(BaseModel):
    """What is served."""

    dataset: str
    retriever: str
    ranker: RankerState = Field(
        description="no weight: the language model's fusion with the retriever gave it 0, so that "
        "POST /recommend does not ask it; POST /rank does."
    )
    ranking_method: str | None = Field(
        description="How the language model is read, its name among the weights; null: none."
    )
    weights: dict[str, float] = Field(
        description="Of each scorer in the final order; 0: it takes no part."
    )
    with_retriever: bool = Field(
        description="False: the scorers alone put the retriever's candidates into order."
    )
    n_items: int
    n_candidates: int = Field(description="Items of the retriever that are put into order.")
    max_k: int = Field(description="Most items of an answer of POST /recommend.")


class Health(BaseModel):
    """The service is up and takes requests."""

    status: Literal["ok"]


class ErrorDetail(BaseModel):
    """What is wrong."""

    field: str | None = Field(description="The field of the request, such as candidates.3.")
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that is no result."""

    error: ErrorDetail
