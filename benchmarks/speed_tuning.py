"""Steps of tuning that speed.py compares: as one would write them, and ours."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from speed_methods import Bench, K, flops_of_tuning
from speed_table import dtype_of

from recbole_llamarec.memory import keep_large_memory
from recbole_llamarec.ranking.model.adapter import add_adapter
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.tuning.step import optimizer_step

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of Llama
BATCH_TOKENS = 1024


class Tuning:
    """Optimizer steps of a new adapter on all linear layers.

    Args:
        bench: a language model of its own, which gets the adapter.
        method: says which by the words in it: ``reference``, ``bfloat16``, ``titles``.

    Attributes:
        dtype: the precision of its matrix products.
        elsewhere: seconds of all steps outside forward and backward passes.
    """

    def __init__(self, bench: Bench, method: str) -> None:
        self.dtype = dtype_of(method)
        self.is_titles, self.elsewhere = "titles" in method, 0.0
        self.ranker = bench.ranker(self.dtype, "likelihood" if self.is_titles else "verbalizer")
        settings = LoraSettings(r=16, dropout=0.0, target_modules=LINEAR)
        self.ranker.model = add_adapter(self.ranker.model, settings, seed=1)
        self.base: Any = self.ranker.model.get_base_model()
        self.weights = [p for p in self.ranker.model.parameters() if p.requires_grad]
        # At a rate of 0 an update takes as long, and all steps start from the same weights.
        self.optimizer = torch.optim.AdamW(self.weights, lr=0.0)
        self._update, self.optimizer.step = self.optimizer.step, self._timed_update
        self.is_reference = "reference" in method
        if self.is_reference:
            self.base.set_attn_implementation("sdpa")
        else:
            keep_large_memory()  # as every run does

    def step(self, histories: list, candidates: list) -> float:
        """One optimizer step; its mean loss in nats."""
        step = self._reference if self.is_reference else self._ours
        return step(histories, candidates, [place % K for place in range(len(histories))])

    def lengths(self, histories: list, candidates: list) -> list[int]:
        """Tokens of each prompt that enter the model."""
        encoded = self._encoded(histories, candidates)
        return [len(own.tokens) - self.is_titles for own in encoded]

    def flops(self, lengths: list[int]) -> float:
        """Operations of the matrix products of a step."""
        return flops_of_tuning(self.base, lengths)

    def _reference(self, histories: list, candidates: list, labels: list[int]) -> float:
        """Padded batch, all logits, the loss at the labels' letters."""
        begin = time.perf_counter()
        prompts = self.ranker.prompts
        tokenizer = prompts.tokenizer
        tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
        texts = [prompts.text(*row) for row in zip(histories, candidates, strict=True)]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        self.elsewhere += time.perf_counter() - begin
        self.ranker.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        letters = list(self.ranker.verbalizer.token_ids[:K])
        logits = self.ranker.model(**encoded).logits[:, -1, letters]  # [B, K] of [B, T, V]
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(labels))
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _ours(self, histories: list, candidates: list, labels: list[int]) -> float:
        begin = time.perf_counter()
        encoded = self._encoded(histories, candidates)
        chosen = [0] * len(labels) if self.is_titles else labels
        targets = np.eye(encoded[0].n_candidates, dtype=np.float32)[chosen]  # [B, K]
        self.elsewhere += time.perf_counter() - begin
        loss = self.ranker.losses["titles" if self.is_titles else "label"]
        budget = TokenBudget(BATCH_TOKENS, "train_batch_tokens")
        return optimizer_step(self.ranker, encoded, targets, loss, self.optimizer, budget)

    def _encoded(self, histories: list, candidates: list) -> list:
        pools = [pool[:1] for pool in candidates] if self.is_titles else candidates
        return [self.ranker.encode(*row) for row in zip(histories, pools, strict=True)]

    def _timed_update(self) -> None:
        begin = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._update()
        self.elsewhere += time.perf_counter() - begin
