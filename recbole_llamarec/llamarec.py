"""LlamaRec as a RecBole model: it joins the retriever and the ranker and adds nothing to either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llamarec.data.samples import SeenItems
from recbole_llamarec.fusion import fused
from recbole_llamarec.ranking.adapter import (
    LoraSettings,
    adapter_state,
    add_adapter,
    load_adapter,
    load_adapter_state,
    lora_settings,
)
from recbole_llamarec.ranking.generation import GeneratingRanker
from recbole_llamarec.ranking.language_model import EMBEDDED, load_language_model, max_positions
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

DEFAULT_ADAPTER = Path(__file__).parent / "adapters" / "smollm2-135m"


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
        ranker_ranks: the same by the ranker alone, without fusion.
        retriever_scores, ranker_scores: of the candidates of the rows that were ranked, in the
            retriever's order, one ``[ranked, K]`` for each batch.
        places: the target's place among those candidates, one ``[ranked]`` for each batch; K where
            it is none of them.
        shown: how the rows that were ranked were shown, int64 ``[ranked, 3]``: the place of the
            ranker's first choice, that of the target (-1 where it is no candidate), and the item
            that is the first choice.
    """

    rerank: bool
    skip_misses: bool
    show_progress: bool
    targets: list[torch.Tensor] = field(default_factory=list)
    ranks: list[torch.Tensor] = field(default_factory=list)
    ranker_ranks: list[torch.Tensor] = field(default_factory=list)
    retriever_scores: list[torch.Tensor] = field(default_factory=list)
    ranker_scores: list[torch.Tensor] = field(default_factory=list)
    places: list[torch.Tensor] = field(default_factory=list)
    shown: list[torch.Tensor] = field(default_factory=list)


class LlamaRec(SequentialRecommender):
    """LlamaRec (Yue et al., 2023, arXiv 2311.02089): retrieve, then rank with a language model.

    Item scores are minus the position in the final order: the retriever's order of all items, its
    first ``rerank_candidates`` items in the order of the ranker, or of both (``rerank_fusion``).
    The language model is loaded when it is first needed and is no part of the ``state_dict``;
    checkpoints hold the retriever and, among the "other parameters", the adapter and what was
    fitted on validation. Until the trainer attaches the ranker or a checkpoint brings its adapter,
    scores are the retriever's.

    Args:
        config: RecBole's ``Config``.
        dataset: the training part of a ``LlamaRecDataset``.

    Raises:
        ValueError: a key is wrong or the data set does not suit it; says which and what to do.

    Attributes:
        fusion_weight: of the ranker beside the retriever; ``None`` leaves the retriever out.
        item_counts: how often each item is a target in training, int64 ``[n_items]``.
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
        self.item_counts = np.bincount(
            np.asarray(dataset.inter_feat[self.ITEM_ID]), minlength=self.n_items
        )
        self._check_catalogue()
        self.retriever, self.retriever_config = build_retriever(
            config, self.settings.retriever, self.settings.retriever_config, dataset
        )
        self._ranker: Ranker | GeneratingRanker | None = None
        self._saved_adapter: dict[str, Any] | None = None
        self._saved_label_prior: torch.Tensor | None = None
        self._pass: EvaluationPass | None = None
        fusion = self.settings.rerank_fusion
        self.fusion_weight: float | None = None if fusion in (None, "auto") else float(fusion)

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
            if isinstance(self._ranker, Ranker):
                self._ranker.label_prior = self._saved_label_prior
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
        directory = self._adapter_directory()
        if directory is None:
            return add_adapter(base, self.settings.lora, self.seed)
        try:
            return load_adapter(base, directory, trainable=True)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"lora_adapter: {error}") from error

    def _adapter_directory(self) -> str | Path | None:
        """Where the adapter to start from lies; ``default`` is the one of the embedded model."""
        name = self.settings.lora_adapter
        if name != "default":
            return None if name in (None, "none") else name
        if self.settings.llm.name_or_path == EMBEDDED:
            return DEFAULT_ADAPTER
        self.logger.info("lora_adapter: default is for llm_name_or_path: embedded; starting afresh")
        return None

    def other_parameter(self) -> dict[str, Any]:
        """For RecBole's checkpoint: the adapter (LoRA settings, weights) and what was fitted."""
        adapter, label_prior = self._saved_adapter, self._saved_label_prior
        if self._ranker is not None:
            model = self._ranker.model
            adapter = {"lora": asdict(lora_settings(model)), "state": adapter_state(model)}
            label_prior = getattr(self._ranker, "label_prior", None)
        return {
            "adapter": adapter,
            "fusion_weight": self.fusion_weight,
            "label_prior": label_prior,
        }

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        """Take the adapter, the weight and the label prior from a checkpoint."""
        if not para or para.get("adapter") is None:
            return
        self._saved_adapter = dict(para["adapter"])
        self._saved_label_prior = para.get("label_prior")
        if self.settings.rerank_fusion == "auto":
            self.fusion_weight = para.get("fusion_weight")
        if self._ranker is not None:
            load_adapter_state(self._ranker.model, self._saved_adapter["state"])
            if isinstance(self._ranker, Ranker):
                self._ranker.label_prior = self._saved_label_prior

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
            order, scores = self._retrieved(interaction)  # [B, N] both
            candidates = order[:, : self.settings.rerank_candidates].clone()  # [B, K]
            if self._pass is not None:
                users, targets = interaction[self.USER_ID], interaction[self.ITEM_ID]  # [B]
                self._pass.targets.append(torch.stack([users, targets], 1).cpu())
                ranks = 1 + (order == targets.unsqueeze(1)).int().argmax(1).cpu()  # [B]
                self._pass.ranks.append(ranks)
                self._pass.ranker_ranks.append(ranks.clone())
            rows = self._rows_to_rank(interaction, candidates)
            if len(rows):
                by_retriever = scores.gather(1, candidates)[rows].cpu()  # [R, K]
                by_ranker = self._ranker_scores(interaction, candidates, rows)  # [R, K]
                best_first = self._final_order(by_retriever, by_ranker).to(order.device)
                order[rows, : candidates.shape[1]] = candidates[rows].gather(1, best_first)
                if self._pass is not None:
                    self._note(self._pass, interaction, candidates, rows, by_retriever, by_ranker)
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
        return self._retrieved(interaction)[0]

    def _retrieved(self, interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """The retriever's order of all items and its scores by item, ``[batch, n_items]`` both."""
        scores = self.retriever.full_sort_predict(interaction).view(-1, self.n_items)  # [B, N]
        scores = scores.detach().float()
        masked = None
        if self.settings.rerank_mask_seen:
            masked = seen_mask(
                interaction[self.USER_ID], interaction[self.ITEM_SEQ], self.seen, self.n_items
            )
        return ranked_items(scores, masked), scores

    def _rows_to_rank(self, interaction, candidates: torch.Tensor) -> torch.Tensor:
        """Rows that the ranker reads, as indices."""
        is_ranked = torch.full((len(candidates),), self.is_ranker_attached)  # [B]
        if self._pass is not None:
            is_ranked &= self._pass.rerank
            if self._pass.skip_misses:
                target = interaction[self.ITEM_ID].unsqueeze(1)  # [B, 1]
                is_ranked &= (candidates == target).any(1).cpu()  # [B]
        return is_ranked.nonzero().squeeze(1).to(candidates.device)

    def _ranker_scores(
        self, interaction, candidates: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """The ranker's log-probabilities of the candidates of some rows, ``[R, K]`` on the CPU."""
        histories = histories_of(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], rows)
        users = interaction[self.USER_ID][rows]
        shown = self._shown_order(users, candidates.shape[1])  # [R, K]
        pool = candidates[rows].cpu().gather(1, shown)  # [R, K]
        show_progress = self._pass is not None and self._pass.show_progress
        scores = self.ranker.rank(histories, pool.tolist(), show_progress)
        if self._pass is not None:
            first = scores.argmax(1, keepdim=True)  # [R, 1]
            is_target = pool == interaction[self.ITEM_ID][rows].cpu().unsqueeze(1)  # [R, K]
            target = torch.where(is_target.any(1), is_target.int().argmax(1), -1)  # [R]
            self._pass.shown.append(torch.cat([first, target[:, None], pool.gather(1, first)], 1))
        return torch.empty_like(scores).scatter_(1, shown, scores)

    def _shown_order(self, users: torch.Tensor, n_candidates: int) -> torch.Tensor:
        """The order in which each user's prompt shows the candidates, ``[users, K]``."""
        if self.settings.rerank_order == "retriever":
            return torch.arange(n_candidates).expand(len(users), -1)
        orders = [
            np.random.default_rng([self.seed, user]).permutation(n_candidates)
            for user in users.tolist()
        ]
        return torch.from_numpy(np.stack(orders))

    def _final_order(self, by_retriever: torch.Tensor, by_ranker: torch.Tensor) -> torch.Tensor:
        """Candidates' columns, best first; equal scores stay in the retriever's order."""
        scores = by_ranker
        if self.fusion_weight is not None:
            final = fused(by_retriever.numpy(), by_ranker.numpy(), self.fusion_weight)
            scores = torch.from_numpy(final)
        return torch.argsort(scores, dim=1, descending=True, stable=True)

    def _note(
        self, noted: EvaluationPass, interaction, candidates, rows, by_retriever, by_ranker
    ) -> None:
        """Write down how the rows that were ranked came out."""
        targets = interaction[self.ITEM_ID][rows].unsqueeze(1)  # [R, 1]
        is_target = (candidates[rows] == targets).cpu()  # [R, K]
        n_candidates = is_target.shape[1]
        places = torch.where(is_target.any(1), is_target.int().argmax(1), n_candidates)  # [R]
        found = (places < n_candidates).nonzero().squeeze(1)
        for ranks, order in (
            (noted.ranks[-1], self._final_order(by_retriever, by_ranker)),
            (noted.ranker_ranks[-1], torch.argsort(by_ranker, dim=1, descending=True, stable=True)),
        ):
            position = (order == places.unsqueeze(1)).int().argmax(1)  # [R]
            ranks[rows.cpu()[found]] = 1 + position[found]
        noted.retriever_scores.append(by_retriever)
        noted.ranker_scores.append(by_ranker)
        noted.places.append(places)

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
