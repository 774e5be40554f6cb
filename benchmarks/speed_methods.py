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
from recbole_llamarec.ranking.batching import pad_right
from recbole_llamarec.ranking.language_model import (
    LanguageModelSettings,
    last_hidden,
    load_language_model,
    output_head,
)
from recbole_llamarec.ranking.packing import PACKED
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.ranking.verbalizer import Verbalizer, default_labels

K = 20
N_HISTORY = 20
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
    models: dict[str, tuple] = field(default_factory=dict)
    prompts: PromptBuilder | None = None

    @classmethod
    def of(cls, dataset: str, data: str | None, **settings: Any) -> Bench:
        """Read a data set as LlamaRec does; ``settings`` are further keys."""
        config, train, _, test = read(dataset, data, ranking_method="none", **settings)
        rows = test.dataset.inter_feat
        sequences = rows["item_id_list"].tolist()
        lengths = rows["item_length"].tolist()
        histories = [row[:n] for row, n in zip(sequences, lengths, strict=True)]
        return cls(histories, train.dataset.item_texts(config["item_text_fallback"]))

    def model(self, kind: str):
        """A language model of ``MODELS``."""
        return self._loaded(kind)[0]

    def _loaded(self, kind: str) -> tuple:
        if kind not in self.models:
            settings = LanguageModelSettings(**MODELS[kind])
            self.models[kind] = load_language_model(settings, torch.device("cpu"))
        return self.models[kind]

    def ranker(self, kind: str, n_permutations: int = 1) -> Ranker:
        """Our ranker of the paper's prompts."""
        model, tokenizer = self._loaded(kind)
        labels = default_labels(2 * K)
        if self.prompts is None:  # all read the same tokenizer
            self.prompts = PromptBuilder(tokenizer, self.titles, labels, max_history=2 * N_HISTORY)
        prompts = self.prompts
        text = prompts.text(range(1, K + 1), range(1, K + 1))
        verbalizer = Verbalizer.for_tokenizer(tokenizer, labels, text)
        return Ranker(model, prompts, verbalizer, BATCH_TOKENS, n_permutations)

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


def ranking_methods(bench: Bench) -> dict[str, Method]:
    """From the reference to ours, one change at a time; then what goes beyond."""
    ours = bench.ranker("float32")
    tokenizer = ours.prompts.tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    label_ids = torch.tensor(ours.verbalizer.token_ids[:K])
    model = ours.model
    ordinary = "sdpa"

    def unpacked(method: Method) -> Method:
        """As transformers has it."""

        def run(histories: list, candidates: list) -> Tensor | None:
            model.packs_prompts = False
            model.set_attn_implementation(ordinary)
            try:
                return method(histories, candidates)
            finally:
                model.set_attn_implementation(PACKED)
                model.packs_prompts = True

        return run

    def batches(histories: list, candidates: list) -> list[tuple[list, list]]:
        starts = range(0, len(histories), REFERENCE_BATCH)
        return [
            (histories[i : i + REFERENCE_BATCH], candidates[i : i + REFERENCE_BATCH])
            for i in starts
        ]

    @torch.no_grad()
    def reference(histories: list, candidates: list) -> Tensor:
        parts = []
        for rows in batches(histories, candidates):
            texts = [ours.prompts.text(h, c) for h, c in zip(*rows, strict=True)]
            encoded = tokenizer(texts, padding=True, return_tensors="pt")
            logits = model(**encoded).logits[:, -1, label_ids]  # [B, K] of [B, T, V]
            parts.append(logits.log_softmax(-1))
        return torch.cat(parts)

    @torch.no_grad()
    def label_rows(histories: list, candidates: list) -> Tensor:
        parts = []
        for rows in batches(histories, candidates):
            prompts = [ours.prompts.encode(h, c) for h, c in zip(*rows, strict=True)]
            hidden = last_hidden(model, *pad_right(prompts, torch.device("cpu")))
            parts.append(ours.verbalizer.scores(hidden, output_head(model), K).log_softmax(-1))
        return torch.cat(parts)

    return {
        "reference": unpacked(reference),
        "label rows and last position only": unpacked(label_rows),
        "and batches of similar length": unpacked(ours.rank),
        "ours: packed": ours.rank,
        "ours: packed, 4 permutations": bench.ranker("float32", 4).rank,
        "ours: packed, bfloat16": bench.ranker("bfloat16").rank,
        "ours: packed, 8 bits": bench.ranker("8 bits").rank,
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


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
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
    config = model.config
    weights = sum(
        module.weight.numel()
        for module in model.get_decoder().modules()
        if isinstance(module, torch.nn.Linear)
    )
    width = config.num_attention_heads * (config.hidden_size // config.num_attention_heads)
    pairs = sum(n * (n + 1) / 2 for n in lengths)
    return 2.0 * weights * sum(lengths) + 4.0 * width * config.num_hidden_layers * pairs
