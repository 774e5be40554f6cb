"""What a ranker is: the interfaces between prompts, language model, losses and their users.

A ranker reads a history and its candidates with a language model and gives each candidate a score.
It knows no batches and no files: :func:`~recbole_llamarec.ranking.rank.rank_all` and the tuning
loop cut the batches. A ranker of one's own is registered by :func:`register_ranker` and chosen by
its name in ``ranking_method``, its losses by their names in ``train_loss``.

Shapes: B batch, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from recbole_llamarec.ranking.model.forward import Forward
    from recbole_llamarec.ranking.prompt.template import PromptTemplate


@dataclass(frozen=True)
class Encoded:
    """One history and its candidates as token ids.

    Attributes:
        context: what all candidates have in common; for letters the whole prompt.
        continuations: what each candidate adds behind it, K lists; none for letters.
        n_candidates: K.
        n_history: titles of the history that are shown.
        n_tokens: what the forward pass in use really computes (``Forward.cost``), in tokens.
        n_context: how many of these are padded to those of the pass's other prompts by themselves,
            before the rest (``Forward.pads_contexts_apart``).
        places: tokens of the context whose states are read, for a ranker that reads several.
    """

    context: list[int]
    continuations: list[list[int]]
    n_candidates: int
    n_history: int
    n_tokens: int
    n_context: int = field(default=0, kw_only=True)
    places: tuple[int, ...] = field(default=(), kw_only=True)

    @property
    def tokens(self) -> list[int]:
        """Context and all continuations in a row, for grouping by common beginnings."""
        return [*self.context, *chain(*self.continuations)]


class Loss(Protocol):
    """A loss that a ranker can be tuned on.

    Attributes:
        reads_candidates: whether the candidates are compared. Where not, the pool of each sample
            is its target alone, so that K is 1.
    """

    @property
    def reads_candidates(self) -> bool: ...

    def __call__(self, ranker: Any, batch: Sequence[Encoded], targets: Tensor) -> Tensor:
        """Loss of each sample, with gradients.

        Args:
            ranker: the ranker whose loss this is.
            batch: samples with K candidates each.
            targets: probability that each candidate should have, float ``[B, K]``; every row sums
                to 1.

        Returns:
            in nats, float32 ``[B]``.
        """
        ...


class Prompts(Protocol):
    """The texts that a ranker shows to its language model.

    Attributes:
        titles: the title of each item id as it is shown.
        n_shortened: prompts so far whose history was cut to fit ``prompt_max_tokens``.
    """

    titles: list[str]
    n_shortened: int

    def text(self, history: Sequence[int], items: Sequence[int]) -> str:
        """The text of a history with its candidates, as it is encoded."""
        ...

    def with_titles(self, texts: Sequence[str]) -> AbstractContextManager[list[int]]:
        """Item ids for titles that the catalogue does not have, within the context."""
        ...

    def report_shortened(self, since: int) -> None:
        """Warn of prompts shortened since :attr:`n_shortened` was ``since``, if there are any."""
        ...


class RankerSettings(Protocol):
    """The settings that rankers are built from; attributes have the names of their YAML keys."""

    @property
    def prompt(self) -> PromptTemplate: ...
    @property
    def prompt_max_history(self) -> int: ...
    @property
    def prompt_max_title_tokens(self) -> int: ...
    @property
    def prompt_max_tokens(self) -> int | None: ...
    @property
    def verbalizer_labels(self) -> Sequence[str] | None: ...
    @property
    def rerank_candidates(self) -> int: ...
    @property
    def likelihood_heading(self) -> str: ...
    @property
    def likelihood_temperature(self) -> float: ...
    @property
    def likelihood_prior(self) -> float: ...
    @property
    def train_loss(self) -> str: ...


@dataclass(frozen=True)
class RankerParts:
    """What a ranker is built from.

    Attributes:
        model: a causal language model with its adapter.
        tokenizer: the model's.
        forward: computes the model's hidden states.
        texts: text of each item id; the first is the padding item's.
        settings: the run's, see :class:`RankerSettings`; a ranker of one's own may read others.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    forward: Forward
    texts: Sequence[str]
    settings: Any


@dataclass(frozen=True)
class ServedParts:
    """What a ranker is built from whose language model is on a server.

    Attributes:
        tokenizer, texts: as in :class:`RankerParts`.
        settings: the run's, :class:`RankerSettings` and ``llm_http``.
    """

    tokenizer: PreTrainedTokenizerBase
    texts: Sequence[str]
    settings: Any


class Ranker(Protocol):
    """Gives each candidate of a history a score.

    It should be no ``nn.Module``, so that a recommender that holds one does not save the language
    model with its weights. It may have ``shares_beginnings``, a bool: whether samples of one pass
    compute a common beginning once, so that tuning brings such samples together. Its class may have
    a class method ``served``, which makes it of :class:`ServedParts` for ``llm_backend: http``.

    Attributes:
        model: the language model with its adapter; what is tuned.
        prompts: its texts as they are shown; ``None`` where it has none.
        max_candidates: most candidates of one history; ``None`` is no limit.
        losses: by the name in ``train_loss``; the first is the default.
    """

    losses: ClassVar[Mapping[str, Loss]]

    @property
    def model(self) -> nn.Module: ...
    @property
    def prompts(self) -> Prompts | None: ...
    @property
    def max_candidates(self) -> int | None: ...

    @classmethod
    def build(cls, parts: RankerParts) -> Ranker:
        """Make a ranker of the loaded language model.

        Raises:
            ValueError: a setting does not fit the model or its tokenizer.
        """
        ...

    def encode(self, history: Sequence[int], items: Sequence[int]) -> Encoded:
        """Token ids of a history and its candidates; a long history is cut to what is shown.

        Args:
            history: item ids in chronological order, any length.
            items: the candidates' item ids, K.

        Raises:
            ValueError: an id is not an item's, or the candidates cannot be shown.
        """
        ...

    def scores(self, batch: Sequence[Encoded]) -> Tensor:
        """Scores of the candidates; their softmax is the probability to be the next item.

        Args:
            batch: at least one, with equally many candidates (K) each.

        Returns:
            float32 ``[B, K]`` on the model's device, with gradients where they are enabled.
        """
        ...


NO_RANKER = "none"  # the value of ranking_method for a run without a language model
_MEMBERS = ("build", "encode", "scores", "losses")
# Modules and classes; imported when first asked for, since they import this module.
_BUILT_IN = {
    "verbalizer": ("recbole_llamarec.ranking.letters", "Letters"),
    "likelihood": ("recbole_llamarec.ranking.likelihood", "Likelihood"),
    "readout": ("recbole_llamarec.ranking.readout", "Readout"),
}
_registered: dict[str, type[Ranker]] = {}


def register_ranker(name: str, ranker_class: type[Ranker]) -> None:
    """Make a ranker known under a name, the value of ``ranking_method`` that chooses it.

    Args:
        name: any name that no ranker has yet.
        ranker_class: implements :class:`Ranker`.

    Raises:
        ValueError: the name is taken or reserved, or the class lacks a member of :class:`Ranker`.
    """
    if name == NO_RANKER:
        raise ValueError(
            f"ranking_method: {NO_RANKER!r} means no ranker at all and is reserved; register "
            f"{ranker_class.__name__} under another name."
        )
    if name in ranker_names():
        raise ValueError(
            f"ranking_method: {name!r} is registered already; register {ranker_class.__name__} "
            f"under another name than {', '.join(ranker_names())}."
        )
    if missing := [member for member in _MEMBERS if not hasattr(ranker_class, member)]:
        raise ValueError(
            f"{ranker_class.__name__} cannot be registered as a ranker: it lacks "
            f"{', '.join(missing)}; see recbole_llamarec.ranking.protocol.Ranker."
        )
    if not ranker_class.losses:
        raise ValueError(
            f"{ranker_class.__name__}.losses is empty; give it one loss at least, such as "
            "{'label': LabelLoss()} of recbole_llamarec.ranking.losses."
        )
    _registered[name] = ranker_class


def ranker_class_of(name: str) -> type[Ranker]:
    """The ranker that is registered under a name.

    Raises:
        ValueError: there is none.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        return getattr(import_module(module), attribute)
    if name not in _registered:
        raise ValueError(
            f"ranking_method: {name!r} is no registered ranker; it must be one of "
            f"{', '.join(ranker_names())}. A ranker of your own needs register_ranker first."
        )
    return _registered[name]


def reads_labels(name: str) -> bool:
    """Whether the ranker of a name has ``reads_labels = True``; no ranker reads none.

    Raises:
        ValueError: no ranker is registered under the name.
    """
    return name != NO_RANKER and getattr(ranker_class_of(name), "reads_labels", False)


def ranker_names() -> tuple[str, ...]:
    """The names of all registered rankers, the built-in ones first."""
    return (*_BUILT_IN, *_registered)
