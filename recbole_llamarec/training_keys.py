"""The YAML keys of training: RecBole's, to which LlamaRec gives other defaults, and LlamaRec's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recbole_llamarec.keys import MAPPING, TEXT, Rule, key, number, one_of, optional, whole

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
LEARNER = Rule(
    "str",
    f"one of RecBole's optimizers: {', '.join(LEARNERS)}",
    lambda value: isinstance(value, str) and value.lower() in LEARNERS,
)


@dataclass(frozen=True)
class TrainingKeys:
    """RecBole's training keys that LlamaRec gives other defaults; RecBole reads them itself."""

    epochs: int = key(1, whole(0), "Passes over the training samples. 0 ranks without tuning.")
    train_batch_size: int = key(16, whole(1), "Samples of one optimizer step.")
    learner: str = key("adamw", LEARNER, "RecBole's name of the optimizer.")
    learning_rate: float = key(1e-4, number(above=0), "Learning rate; the default is the paper's.")
    weight_decay: float = key(0.0, number(at_least=0), "Weight decay of the optimizer.")
    clip_grad_norm: Mapping[str, Any] | None = key(
        {"max_norm": 1.0},
        optional(MAPPING),
        "Largest norm of the adapter's gradient; ~ does not clip.",
    )
    stopping_step: int = key(20, whole(0), "Validations without improvement before tuning stops.")
    valid_metric: str = key(
        "NDCG@10", TEXT, "Metric that chooses the best state of the retriever and of the adapter."
    )
    train_neg_sample_args: Mapping[str, Any] | None = key(
        None,
        optional(MAPPING),
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
        one_of("random", "retriever"),
        "Negatives in training: random items (the paper's), or items drawn from the retriever's "
        "first ones.",
    )
    train_candidates_from: int = key(
        100, whole(2), "How far down the retriever's order those are drawn."
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
    train_batch_tokens: int = key(
        1024,
        whole(1),
        "Tokens of one forward and backward pass; bounds memory alone (about 2 MB a token for the "
        "embedded model in float32).",
    )
    train_eval_steps: int | None = key(
        100, optional(whole(1)), "Optimizer steps between validations; ~ only at the end."
    )
    train_eval_rows: int | None = key(
        128, optional(whole(1)), "Validation rows, a fixed random choice; ~ takes all."
    )
    save_every_minutes: float = key(
        10,
        number(above=0),
        "Minutes after which the state of a run is written at the latest; it is also written at "
        "each validation.",
    )
    resume: str | None = key(
        None,
        optional(TEXT),
        "Checkpoint (saved/….pth) of an interrupted run to go on with; ~ takes up an interrupted "
        "run of exactly these settings, if checkpoint_dir holds one.",
    )
