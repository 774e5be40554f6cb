"""The YAML keys of training: RecBole's, to which LlamaRec gives other defaults, and LlamaRec's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llamarec.keys import SWITCH, TEXT, either, key, number, one_of, optional, whole
from recbole_llamarec.path_rules import FILE
from recbole_llamarec.recbole_keys import RULES


@dataclass(frozen=True)
class TrainingKeys:
    """RecBole's training keys that LlamaRec gives other defaults; RecBole reads them itself."""

    epochs: int = key(
        1, RULES["epochs"], "Passes over the training samples. 0 ranks without tuning."
    )
    train_batch_size: int = key(16, RULES["train_batch_size"], "Samples of one optimizer step.")
    learner: str = key("adamw", RULES["learner"], "RecBole's name of the optimizer.")
    learning_rate: float = key(
        1e-4, RULES["learning_rate"], "Learning rate; the default is the paper's."
    )
    weight_decay: float = key(0.0, RULES["weight_decay"], "Weight decay of the optimizer.")
    clip_grad_norm: Mapping[str, Any] | None = key(
        {"max_norm": 1.0},
        RULES["clip_grad_norm"],
        "Largest norm of the adapter's gradient, and torch's further arguments of clip_grad_norm_; "
        "~ does not clip.",
    )
    stopping_step: int = key(
        20, RULES["stopping_step"], "Validations without improvement before tuning stops."
    )
    valid_metric: str = key(
        "NDCG@10",
        RULES["valid_metric"],
        "Metric that chooses the best state of the retriever and of the adapter.",
    )
    train_neg_sample_args: Mapping[str, Any] | None = key(
        None,
        RULES["train_neg_sample_args"],
        "RecBole's loaders draw no negatives; the ranker's come from train_candidates.",
    )


@dataclass(frozen=True)
class TuningKeys:
    """LlamaRec's keys of tuning: its samples, its loss, its steps and its saved state."""

    train_loss: str = key(
        "label",
        TEXT,
        "label: cross-entropy over the candidates' labels or titles. next_token: over the "
        "vocabulary, label and end token, as the official code. titles: with ranking_method: "
        "likelihood, every title of the history as the next one.",
    )
    train_candidates: str = key(
        "random",
        one_of("random", "popular", "retriever", "retrieved"),
        "Candidates in training: the target among random items (the paper's), among items drawn by "
        "how often they are chosen, or among ones drawn from the retriever's first (retriever); or "
        "the retriever's first ones themselves, as in the test, whether the target is among them "
        "or not (retrieved; needs train_evidence).",
    )
    train_pool: int | None = key(
        None,
        optional(whole(2)),
        "Candidates of a sample in training, at most rerank_candidates; ~ is as many as these.",
    )
    train_binding_steps: int = key(
        0,
        whole(0),
        "Optimizer steps over which the share of samples falls from 1 to 0 whose target is one of "
        "the history's items that the prompt shows, so that the model learns to answer with the "
        "label of what it looks for.",
    )
    train_candidates_from: int = key(
        100, whole(2), "How far down the retriever's order those are drawn."
    )
    train_evidence: float = key(
        0.0,
        number(at_least=0, at_most=1),
        "Share of a sample's target that evidence gives: how often other users chose each "
        "candidate after the history's last 5 items, within evidence_window. All of it where the "
        "target is no candidate.",
    )
    train_positions: int = key(
        1,
        whole(1),
        "Consecutive positions of a history that are samples together: their prompts have the "
        "history in common, which packing computes once.",
    )
    train_schedule: str = key(
        "constant",
        one_of("constant", "cosine"),
        "Learning rate over the steps: constant, or cosine, which rises over the first 3 % and "
        "then falls to 0.",
    )
    train_max_samples: int | None = key(
        128,
        optional(whole(0)),
        "Samples of one epoch, drawn at random; ~ takes every training prefix, as the paper does. "
        "The default suits 2 CPU cores.",
    )
    train_batch_tokens: int | str = key(
        "auto",
        either("auto", whole(1)),
        "Tokens of one forward and backward pass; bounds memory alone (about 2 MB a token for the "
        "embedded model in float32). auto: as many as fit into a GPU's free memory; 1024 on a CPU.",
    )
    train_gradient_checkpointing: bool = key(
        False,
        SWITCH,
        "Compute each layer again in the backward pass instead of keeping what it computed: less "
        "memory for more time, with the same gradients.",
    )
    train_eval_steps: int | None = key(
        100, optional(whole(1)), "Optimizer steps between validations; ~ only at the end."
    )
    train_eval_rows: int | None = key(
        128, optional(whole(1)), "Validation rows, a fixed random choice; ~ takes all."
    )
    save_every_minutes: float = key(
        10,
        number(above=0, at_most=1e6),
        "Minutes after which the state of a run is written at the latest; it is also written at "
        "each validation.",
    )
    resume: str | None = key(
        None,
        optional(FILE),
        "Checkpoint (saved/….pth) of an interrupted run to go on with; ~ takes up an interrupted "
        "run of exactly these settings, if checkpoint_dir holds one.",
    )


def pool_size(train_pool: int | None, rerank_candidates: int) -> tuple[str, int]:
    """The key that sets how many candidates a sample has in training, and its value."""
    if train_pool is None:
        return "rerank_candidates", rerank_candidates
    return "train_pool", train_pool
