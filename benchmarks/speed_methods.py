"""What speed.py compares: ranking and tuning as one would write them, and ours."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole.config import Config
from recbole.data import create_dataset, data_preparation

import recbole_llamarec  # noqa: F401  registers the models
from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.forward import Padded, forward_for
from recbole_llamarec.ranking.model.loading import (
    EMBEDDED,
    LanguageModelSettings,
    load_language_model,
)
from recbole_llamarec.ranking.model.packed_attention import PACKED
from recbole_llamarec.ranking.protocol import RankerParts, ranker_class_of
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.settings import LlamaRecSettings

CPU = torch.device("cpu")
K = 20
N_HISTORY = 20
MOST_CANDIDATES, MOST_HISTORY = 40, 40
REFERENCE_BATCH = 16
BATCH_TOKENS = 2048
MODELS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bits": {"dtype": "bfloat16", "load_in_8bit": True},
}
Method = Callable[[list, list], Tensor | None]


def read(dataset: str, data: str | None, **settings: Any) -> tuple:
    """A run's configuration and its three loaders; ``settings`` are further keys."""
    settings |= {"show_progress": False} | ({"data_path": data} if data else {})
    arguments, sys.argv = sys.argv, sys.argv[:1]  # RecBole reads the command line
    config = Config(model="LlamaRec", dataset=dataset, config_dict=settings)
    sys.argv = arguments
    return config, *data_preparation(config, create_dataset(config))


@dataclass
class Bench:
    """A data set's test histories and titles, and the language models that read them."""

    histories: list[list[int]]
    titles: list[str]
    llm: str = EMBEDDED
    rankers: dict[tuple[str, str], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: str, data: str | None, llm: str = EMBEDDED, **settings: Any) -> Bench:
        """Read a data set as LlamaRec does.

        Args:
            dataset, data: its name, and RecBole's ``data_path``.
            llm: as ``llm_name_or_path``.
            settings: further keys.
        """
        config, train, _, test = read(dataset, data, ranking_method="none", **settings)
        rows = test.dataset.inter_feat
        sequences = rows["item_id_list"].tolist()
        lengths = rows["item_length"].tolist()
        histories = [row[:n] for row, n in zip(sequences, lengths, strict=True)]
        return cls(histories, train.dataset.item_texts(config["item_text_fallback"]), llm)

    def model(self, kind: str) -> Any:
        """A language model of ``MODELS``."""
        return self.ranker(kind).model

    def ranker(self, kind: str, method: str = "verbalizer") -> Any:
        """Our ranker, of the paper's prompts if not said otherwise, with packed attention."""
        if (kind, method) not in self.rankers:
            loading = LanguageModelSettings(**{"name_or_path": self.llm, **MODELS[kind]})
            model, tokenizer = load_language_model(loading, CPU)
            forward = forward_for(model, PACKED, CPU)
            settings = LlamaRecSettings(
                rerank_candidates=MOST_CANDIDATES, prompt_max_history=MOST_HISTORY
            )
            parts = RankerParts(model, tokenizer, forward, self.titles, settings)
            self.rankers[kind, method] = ranker_class_of(method).build(parts)
        return self.rankers[kind, method]

    def sample(
        self, n_users: int, seed: int, n_history: int = N_HISTORY, n_candidates: int | None = None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Some users' histories, and random items as candidates: their titles are what counts."""
        generator = np.random.default_rng(seed + 1)
        users = generator.choice(len(self.histories), n_users, replace=False)
        histories = [self.histories[user][-n_history:] if n_history else [] for user in users]
        pools = [
            (1 + generator.choice(len(self.titles) - 1, n_candidates or K, replace=False)).tolist()
            for _ in users
        ]
        return histories, pools

    def lengths(self, histories: list, candidates: list) -> list[int]:
        """Tokens of each prompt."""
        prompts = self.ranker("float32").prompts
        return [len(prompts.encode(h, c)) for h, c in zip(histories, candidates, strict=True)]


def ours(ranker: Letters) -> Method:
    """A ranking by our own function, in passes of ``BATCH_TOKENS``."""

    budget = TokenBudget(BATCH_TOKENS, "llm_batch_tokens")

    def rank(histories: list, candidates: list) -> Tensor:
        return rank_all(ranker, histories, candidates, budget)

    return rank


def ranking_methods(bench: Bench) -> dict[str, Method]:
    """From the reference to ours, one change at a time; then what goes beyond."""
    ranker = bench.ranker("float32")
    model: Any = ranker.model
    tokenizer = ranker.prompts.tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    label_ids = list(ranker.verbalizer.token_ids[:K])
    padded = Letters(model, Padded(model), ranker.prompts, ranker.verbalizer)

    def unpacked(method: Method) -> Method:
        """With the attention that transformers itself takes."""

        def run(histories: list, candidates: list) -> Tensor | None:
            model.set_attn_implementation("sdpa")
            try:
                return method(histories, candidates)
            finally:
                model.set_attn_implementation(PACKED)

        return run

    def batches(histories: list, candidates: list) -> list[list[tuple[list, list]]]:
        rows = list(zip(histories, candidates, strict=True))
        return [rows[i : i + REFERENCE_BATCH] for i in range(0, len(rows), REFERENCE_BATCH)]

    @torch.no_grad()
    def reference(histories: list, candidates: list) -> Tensor:
        parts = []
        for rows in batches(histories, candidates):
            texts = [ranker.prompts.text(*row) for row in rows]
            encoded = tokenizer(texts, padding=True, return_tensors="pt")
            logits = model(**encoded).logits[:, -1, label_ids]  # [B, K] of [B, T, V]
            parts.append(logits.log_softmax(-1))
        return torch.cat(parts)

    @torch.no_grad()
    def label_rows(histories: list, candidates: list) -> Tensor:
        parts = [
            padded.scores([padded.encode(*row) for row in rows]).log_softmax(-1)  # [B, K]
            for rows in batches(histories, candidates)
        ]
        return torch.cat(parts)

    return {
        "reference": unpacked(reference),
        "label rows and last position only": unpacked(label_rows),
        "and batches of similar length": unpacked(ours(padded)),
        "ours: packed": ours(ranker),
        "ours: packed, bfloat16": ours(bench.ranker("bfloat16")),
        "ours: packed, 8 bits": ours(bench.ranker("8 bits")),
    }


def llama_cpp_ranking(bench: Bench, gguf: str) -> Method:
    """Prompt-only scoring by llama.cpp: one token's log-probabilities behind each prompt."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = gguf
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 4096, 1, -1
    for threads in (parameters.cpuparams, parameters.cpuparams_batch):
        threads.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(parameters)
    prompts = bench.ranker("float32").prompts

    def rank(histories: list, candidates: list) -> None:
        for history, pool in zip(histories, candidates, strict=True):
            request = {"prompt": prompts.text(history, pool), "max_tokens": 1, "logprobs": K}
            server.handle_completions({**request, "cache_prompt": False, "temperature": 0})

    return rank


@cache
def _square(dtype: torch.dtype, size: int) -> Tensor:
    return torch.randn(size, size).to(dtype)


def matrix_rate(dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of a large matrix product, the best of five."""
    matrix = _square(dtype, size)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def flops_of_prompts(model, lengths: Sequence[int]) -> float:
    """Operations of the matrix products that prompts need: linear layers and causal attention."""
    return _flops(model, lengths, frozen=2.0, trained=2.0, attention=4.0)


def flops_of_tuning(model, lengths: Sequence[int]) -> float:
    """The same of a forward and a backward pass, where frozen weights need no gradient.

    Args:
        model: with an adapter on all layers.
        lengths: tokens of each prompt.
    """
    return _flops(model, lengths, frozen=4.0, trained=6.0, attention=12.0)


def _flops(model, lengths: Sequence[int], frozen: float, trained: float, attention: float) -> float:
    """Operations for each weight and token, and for each pair of tokens and each channel."""
    config = model.config
    layers = [m for m in model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    a_token = sum(
        (trained if layer.weight.requires_grad else frozen) * layer.weight.numel()
        for layer in layers
    )
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    return a_token * sum(lengths) + attention * width * config.num_hidden_layers * pairs
