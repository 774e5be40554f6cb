"""LlamaRec as a RecBole model: it joins the retriever and the ranker and adds nothing to either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llamarec.data.samples import SeenItems
from recbole_llamarec.ranking.adapter import (
    LoraSettings,
    adapter_state,
    add_adapter,
    load_adapter,
    load_adapter_state,
    lora_settings,
)
from recbole_llamarec.ranking.generation import GeneratingRanker
from recbole_llamarec.ranking.language_model import load_language_model, max_positions
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.ranking.verbalizer import Verbalizer
from recbole_llamarec.registry import known_keys
from recbole_llamarec.retrieval.retriever import (
    build_retriever,
    ranked_items,
    scores_from_order,
    seen_mask,
)
from recbole_llamarec.settings import LlamaRecSettings, report_unknown_keys


@dataclass
class EvaluationPass:
    """How one pass over evaluation data is scored, and what it notes down.

    Attributes:
        rerank: whether the ranker takes part.
        skip_misses: leave rows alone whose target is not among the candidates; no metric that
            depends on the target's rank alone can change there.
        show_progress: show a progress bar over prompts.
        targets: user and target item of every row so far, one ``[rows, 2]`` for each batch.
        ranks: the target's rank in every row's final order, from 1, one ``[rows]`` for each batch.
    """

    rerank: bool
    skip_misses: bool
    show_progress: bool
    targets: list[torch.Tensor] = field(default_factory=list)
    ranks: list[torch.Tensor] = field(default_factory=list)


class LlamaRec(SequentialRecommender):
    """LlamaRec (Yue et al., 2023, arXiv 2311.02089): retrieve, then rank with a language model.

    Item scores are minus the position in the final order: the retriever's order of all items, its
    first ``rerank_candidates`` items in the ranker's order. The language model is loaded when it
    is first needed and is no part of the ``state_dict``; checkpoints hold the retriever and, among
    the "other parameters", the adapter. Until the trainer attaches the ranker or a checkpoint
    brings its adapter, scores are the retriever's.

    Args:
        config: RecBole's ``Config``.
        dataset: the training part of a ``LlamaRecDataset``.

    Raises:
        ValueError: a key is wrong or the data set does not suit it; says which and what to do.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.settings = LlamaRecSettings.from_config(config)
        unknown = report_unknown_keys(config.external_config_dict, known_keys(config))
        if unknown:
            self.logger.warning(f"Nothing reads these keys: {', '.join(unknown)}")
        self.seed = config["seed"]
        self.item_texts = dataset.item_texts(self.settings.item_text_fallback)
        self.seen = _seen_items(dataset, self.USER_ID, self.ITEM_ID, self.ITEM_SEQ)
        self._check_catalogue()
        self.retriever, self.retriever_config = build_retriever(
            config, self.settings.retriever, self.settings.retriever_config, dataset
        )
        self._ranker: Ranker | GeneratingRanker | None = None
        self._saved_adapter: dict[str, Any] | None = None
        self._pass: EvaluationPass | None = None

    def _check_catalogue(self) -> None:
        longest = self.seen.most + 1  # at test time, the validation item is history too
        needed = self.settings.rerank_candidates + longest
        if self.n_items - 1 < needed:
            raise ValueError(
                f"rerank_candidates: {self.settings.rerank_candidates} candidates and the longest "
                f"history of {longest} items need a catalogue of {needed} items, but there "
                f"are {self.n_items - 1}. Use fewer candidates, or filter the data less."
            )

    # --- the ranker ----------------------------------------------------------------------------

    @property
    def is_ranker_attached(self) -> bool:
        """Whether scores are the ranker's, which may still have to be loaded."""
        is_known = self._ranker is not None or self._saved_adapter is not None
        return self.settings.has_ranker and is_known

    @property
    def ranker(self) -> Ranker | GeneratingRanker:
        """The ranker; loads the language model on first use."""
        if self._ranker is None:
            self._ranker = self._load_ranker()
        return self._ranker

    def _load_ranker(self) -> Ranker | GeneratingRanker:
        settings = self.settings
        base, tokenizer = load_language_model(settings.llm, self.device)
        template, limit = settings.prompt, settings.prompt_max_tokens or max_positions(base)
        if settings.ranking_method == "generate":
            template = replace(template, instruction=settings.generate_instruction)
            if limit is not None:  # the written list needs positions too: each title and its line
                limit -= settings.rerank_candidates * (settings.prompt_max_title_tokens + 1)
        prompts = PromptBuilder(
            tokenizer,
            self.item_texts,
            settings.verbalizer_labels,
            template,
            max_history=settings.prompt_max_history,
            max_title_tokens=settings.prompt_max_title_tokens,
            max_prompt_tokens=limit,
        )
        if settings.ranking_method == "generate":
            return GeneratingRanker(self._adapted(base), prompts, settings.llm_batch_tokens)
        some_items = range(1, settings.rerank_candidates + 1)
        verbalizer = Verbalizer.for_tokenizer(
            tokenizer,
            settings.verbalizer_labels,
            prompts.text(some_items, some_items),
            settings.prompt.response,
        )
        return Ranker(
            self._adapted(base),
            prompts,
            verbalizer,
            settings.llm_batch_tokens,
            settings.rerank_permutations,
        )

    def _adapted(self, base):
        """The language model with its adapter: a checkpoint's, a directory's, or a fresh one."""
        if self._saved_adapter is not None:
            model = add_adapter(base, LoraSettings(**self._saved_adapter["lora"]), self.seed)
            load_adapter_state(model, self._saved_adapter["state"])
            return model
        directory = self.settings.lora_adapter
        if directory is None:
            return add_adapter(base, self.settings.lora, self.seed)
        try:
            return load_adapter(base, directory, trainable=True)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"lora_adapter: {error}") from error

    def other_parameter(self) -> dict[str, Any]:
        """The adapter, for RecBole's checkpoint: its LoRA settings and its weights on the CPU."""
        if self._ranker is not None:
            model = self._ranker.model
            lora = asdict(lora_settings(model))
            return {"adapter": {"lora": lora, "state": adapter_state(model)}}
        return {"adapter": self._saved_adapter}

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        """Take the adapter from a checkpoint."""
        if not para or para.get("adapter") is None:
            return
        self._saved_adapter = dict(para["adapter"])
        if self._ranker is not None:
            load_adapter_state(self._ranker.model, self._saved_adapter["state"])

    # --- scoring -------------------------------------------------------------------------------

    @contextmanager
    def evaluating(self, **options) -> Iterator[EvaluationPass]:
        """Score one pass over evaluation data as :class:`EvaluationPass` says."""
        previous, self._pass = self._pass, EvaluationPass(**options)
        try:
            yield self._pass
        finally:
            self._pass = previous

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Score all items of each row: minus the position in the final order.

        Args:
            interaction: a batch of RecBole's evaluation data. Its target is read only to skip rows
                (``EvaluationPass.skip_misses``); no prompt is made from it.

        Returns:
            float32 ``[batch, n_items]`` without ties; the padding item stands last.

        Raises:
            RuntimeError: scoring failed in a way that RecBole would take for "not implemented".
        """
        try:
            order = self.retrieve(interaction)  # [B, N]
            candidates = order[:, : self.settings.rerank_candidates]  # [B, K]
            rows = self._rows_to_rank(interaction, candidates)
            if len(rows):
                order[rows, : candidates.shape[1]] = self._rerank(interaction, candidates, rows)
            if self._pass is not None:
                users, targets = interaction[self.USER_ID], interaction[self.ITEM_ID]  # [B]
                self._pass.targets.append(torch.stack([users, targets], 1).cpu())
                self._pass.ranks.append(1 + (order == targets.unsqueeze(1)).int().argmax(1).cpu())
            return scores_from_order(order)
        except NotImplementedError as error:  # RecBole would fall back to item-by-item scoring
            raise RuntimeError(f"LlamaRec cannot score this batch: {error}") from error

    def predict(self, interaction) -> torch.Tensor:
        """Score the given item of each row, as :meth:`full_sort_predict` does; ``[batch]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def retrieve(self, interaction) -> torch.Tensor:
        """The retriever's order of all items, items already seen last where they are masked.

        Returns:
            int64 ``[batch, n_items]``, each row a permutation.
        """
        scores = self.retriever.full_sort_predict(interaction).view(-1, self.n_items)  # [B, N]
        masked = None
        if self.settings.rerank_mask_seen:
            masked = seen_mask(
                interaction[self.USER_ID], interaction[self.ITEM_SEQ], self.seen, self.n_items
            )
        return ranked_items(scores.detach().float(), masked)

    def _rows_to_rank(self, interaction, candidates: torch.Tensor) -> torch.Tensor:
        """Rows that the ranker reads, as indices."""
        is_ranked = torch.full((len(candidates),), self.is_ranker_attached)  # [B]
        if self._pass is not None:
            is_ranked &= self._pass.rerank
            if self._pass.skip_misses:
                target = interaction[self.ITEM_ID].unsqueeze(1)  # [B, 1]
                is_ranked &= (candidates == target).any(1).cpu()  # [B]
        return is_ranked.nonzero().squeeze(1).to(candidates.device)

    def _rerank(self, interaction, candidates: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The candidates of ``rows`` in the ranker's order, ``[rows, K]``."""
        histories = histories_of(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], rows)
        pool = candidates[rows]  # [R, K]
        show_progress = self._pass is not None and self._pass.show_progress
        scores = self.ranker.rank(histories, pool.tolist(), show_progress)
        best_first = torch.argsort(scores, dim=1, descending=True, stable=True)
        return pool.gather(1, best_first.to(pool.device))

    def calculate_loss(self, interaction):
        """Not used: ``LlamaRecTrainer`` trains both stages by their own losses."""
        raise RuntimeError("LlamaRec is trained by LlamaRecTrainer, stage by stage.")


def histories_of(
    sequences: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor
) -> list[list[int]]:
    """Unpadded histories of some rows of ``[batch, length]`` item sequences."""
    items, counts = sequences[rows].tolist(), lengths[rows].tolist()
    return [row[:count] for row, count in zip(items, counts, strict=True)]


def _seen_items(dataset, user_field: str, item_field: str, sequence_field: str) -> SeenItems:
    rows = dataset.inter_feat
    return SeenItems.from_rows(
        np.asarray(rows[user_field]),
        np.asarray(rows[item_field]),
        np.asarray(rows[sequence_field]),
        dataset.user_num,
    )
