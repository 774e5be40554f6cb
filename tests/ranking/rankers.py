"""Small real rankers for the tests, and one step of tuning as the tuning loop does it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from helpers import titles

from recbole_llamarec.ranking.model.adapter import add_adapter
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.forward import Padded, forward_for
from recbole_llamarec.ranking.model.loading import LanguageModelSettings, load_language_model
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.protocol import Encoded, RankerParts

CPU = torch.device("cpu")
WAYS = ("packed", "sdpa", "padded")  # Packed, PrefixCache and Padded


@dataclass(frozen=True)
class Settings:
    """What rankers read of a run's settings."""

    prompt: PromptTemplate = PromptTemplate()
    prompt_max_history: int = 20
    prompt_max_title_tokens: int = 32
    prompt_max_tokens: int | None = None
    verbalizer_labels: tuple[str, ...] | None = None
    rerank_candidates: int = 7
    likelihood_heading: str = "User history:"
    likelihood_temperature: float = 1.0
    likelihood_prior: float = 0.0
    train_loss: str = "label"


def parts_of(
    folder: Path, way: str = "packed", lora: dict | None = None, **settings
) -> RankerParts:
    """A random Llama with an adapter that does nothing yet, and 50 titles."""
    attention = "sdpa" if way == "padded" else way
    loading = LanguageModelSettings(name_or_path=str(folder), dtype="float32", attention=attention)
    base, tokenizer = load_language_model(loading, CPU)
    model = add_adapter(base, LoraSettings(**({"dropout": 0.0} | (lora or {}))), seed=1)
    forward = Padded(model) if way == "padded" else forward_for(model, attention, CPU)
    return RankerParts(model, tokenizer, forward, ["", *titles(50)], Settings(**settings))


def randomise_adapter(model: torch.nn.Module, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(3)
    for weight in trainable(model):
        weight.data = torch.randn(weight.shape, generator=generator) * scale


def scale_logits(model: torch.nn.Module, scale: float) -> None:
    """Let a model with an adapter multiply its logits, as some models do."""
    base = model.get_base_model()
    plain = base.forward

    def scaled(*args, **options):
        output = plain(*args, **options)
        output.logits = scale * output.logits
        return output

    base.forward = scaled


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def budget_of(tokens: int) -> TokenBudget:
    return TokenBudget(tokens, "llm_batch_tokens")


def one_hot(places: Sequence[int], n_candidates: int) -> torch.Tensor:
    return torch.eye(n_candidates)[list(places)]  # [B, K]


def gradient_of(
    ranker, encoded: Sequence[Encoded], targets: torch.Tensor, loss: str, tokens: int = 900
) -> float:
    """Mean loss of a batch that is cut into passes, whose gradients add up in the model."""
    ranker.model.train()
    ranker.model.zero_grad(set_to_none=True)
    total = 0.0
    for rows in budget_of(tokens).batches(encoded, ranker.shares_beginnings):
        batch = [encoded[row] for row in rows]
        share = ranker.losses[loss](ranker, batch, targets[rows]).sum() / len(encoded)
        share.backward()
        total += share.item()
    return total


def tuned(
    ranker,
    batches: Iterable[Sequence[Encoded]],
    targets: torch.Tensor,
    loss: str,
    learning_rate: float,
) -> list[float]:
    """Tune for one step a batch; return the loss of each."""
    optimizer = torch.optim.AdamW(trainable(ranker.model), lr=learning_rate)
    losses = []
    for encoded in batches:
        losses.append(gradient_of(ranker, encoded, targets, loss, 4000))
        torch.nn.utils.clip_grad_norm_(trainable(ranker.model), 1.0)
        optimizer.step()
    return losses


class ListLog:
    """A log of batches in memory, of which some may be kept."""

    def __init__(self, kept: Sequence[torch.Tensor] = ()) -> None:
        self.batches: list[torch.Tensor] = []
        self._kept = iter(kept)

    @classmethod
    def interrupted(cls, log: ListLog, n_batches: int) -> ListLog:
        return cls(list(islice(log.batches, n_batches)))

    def next(self) -> torch.Tensor | None:
        return next(self._kept, None)

    def add(self, scores: torch.Tensor) -> None:
        self.batches.append(scores)
