"""LlamaRec as a RecBole model: it joins the retriever and the ranker and adds nothing to either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llamarec.data.seen import SeenItems, seen_mask
from recbole_llamarec.evaluation import CandidateScores, EvaluationPass, best_first_of
from recbole_llamarec.fusion import fused
from recbole_llamarec.integration.configs import known_keys
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
from recbole_llamarec.ranking.likelihood import LikelihoodRanker
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.ranking.title_list import TitleList
from recbole_llamarec.ranking.verbalizer import Verbalizer
from recbole_llamarec.retrieval.candidates import ranked_items, scores_from_order
from recbole_llamarec.retrieval.neighbours import Neighbours, training_sequences
from recbole_llamarec.retrieval.retriever import build_retriever
from recbole_llamarec.settings import LlamaRecSettings, report_unknown_keys

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


AnyRanker = Ranker | GeneratingRanker | LikelihoodRanker


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
        evidence_weight: of the evidence beside both, 0 where it takes no part.
        evidence_weight_alone: of the evidence beside the retriever without the ranker.
        item_counts: how often each item is a target in training, int64 ``[n_items]``.
        neighbours: what followed each item in training, where it is used (evidence_items).
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
        self.neighbours: Neighbours | None = None
        if self.settings.shows_evidence or self.settings.fuses_evidence:
            sequences = training_sequences(
                *(
                    np.asarray(dataset.inter_feat[field])
                    for field in (self.USER_ID, self.ITEM_ID, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
                )
            )
            self.neighbours = Neighbours(
                sequences,
                self.n_items,
                n_recent=self.settings.evidence_items,
                n_followers=self.settings.evidence_followers,
                window=self.settings.evidence_window,
            )
        self._check_catalogue()
        self.retriever, self.retriever_config = build_retriever(
            config, self.settings.retriever, self.settings.retriever_config, dataset
        )
        self._ranker: AnyRanker | None = None
        self._saved_adapter: dict[str, Any] | None = None
        self._saved_label_prior: torch.Tensor | None = None
        self._pass: EvaluationPass | None = None
        fusion = self.settings.rerank_fusion
        self.fusion_weight: float | None = None if fusion in (None, "auto") else float(fusion)
        self.evidence_weight = self.evidence_weight_alone = 0.0

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
    def ranker_has_a_say(self) -> bool:
        """Whether the ranker can change the final order: it is there, and its weight is not 0."""
        return self.is_ranker_attached and self.fusion_weight != 0

    @property
    def changes_order(self) -> bool:
        """Whether the final order can be another than the retriever's."""
        return self.ranker_has_a_say or bool(self.evidence_weight)

    @property
    def ranker(self) -> AnyRanker:
        """The ranker; loads the language model on first use."""
        if self._ranker is None:
            texts, device = self.item_texts, self.device
            self._ranker = build_ranker(self.settings, texts, device, self._adapted)
            if isinstance(self._ranker, Ranker):
                self._ranker.label_prior = self._saved_label_prior
        return self._ranker

    def _adapted(self, base):
        """The language model with its adapter: a checkpoint's, a directory's, or a fresh one."""
        if self._saved_adapter is not None:
            model = add_adapter(base, LoraSettings(**self._saved_adapter["lora"]), self.seed)
            load_adapter_state(model, self._saved_adapter["state"])
            return model
        directory = self.settings.adapter_directory
        if directory is None:
            return add_adapter(base, self.settings.lora, self.seed)
        try:
            return load_adapter(base, directory, trainable=True)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"lora_adapter: {error}") from error

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
            "evidence_weights": [self.evidence_weight, self.evidence_weight_alone],
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
            weights = para.get("evidence_weights", (0.0, 0.0))
            self.evidence_weight, self.evidence_weight_alone = weights
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
            order, scores = self.retrieve_with_scores(interaction, self.seen)  # [B, N] both
            candidates = order[:, : self.settings.rerank_candidates].clone()  # [B, K]
            users, noted = interaction[self.USER_ID], self._pass  # [B]
            if noted is not None:
                noted.note(users, interaction[self.ITEM_ID], order)
            rows = self._rows_to_rank(interaction, candidates)  # [R]
            if len(rows):
                pool = candidates[rows]  # [R, K]
                sequences, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
                histories = histories_of(sequences, lengths, rows)
                shown = self._shown_order(users[rows], pool.shape[1])  # [R, K]
                found = self.all_scores(scores[rows].gather(1, pool), histories, pool, shown)
                best_first = best_first_of(self.final_scores(found))  # [R, K]
                order[rows, : pool.shape[1]] = pool.gather(1, best_first.to(pool.device))
                if noted is not None:
                    targets = interaction[self.ITEM_ID][rows].cpu()  # [R]
                    orders = best_first, best_first_of(self.scores_without_ranker(found))
                    noted.note_ranked(rows.cpu(), targets, pool.cpu(), shown, found, *orders)
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
        return self.retrieve_with_scores(interaction, self.seen)[0]

    def retrieve_with_scores(
        self, interaction, seen: SeenItems, users: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The retriever's order of all items, and its scores by item.

        Args:
            interaction: users and histories.
            seen: what each user has seen beside the history in ``interaction``.
            users: whom ``seen`` knows each row as, ``[batch]``; the interaction's if left out.

        Returns:
            int64 and float32 ``[batch, n_items]``.
        """
        scores = self.retriever.full_sort_predict(interaction).view(-1, self.n_items)  # [B, N]
        scores = scores.detach().float()
        masked = None
        if self.settings.rerank_mask_seen:
            users = interaction[self.USER_ID] if users is None else users
            masked = seen_mask(users, interaction[self.ITEM_SEQ], seen, self.n_items)
        return ranked_items(scores, masked), scores

    def _rows_to_rank(self, interaction, candidates: torch.Tensor) -> torch.Tensor:
        """Rows whose candidates are put into another order, as indices."""
        is_ranked = torch.full((len(candidates),), self.changes_order)  # [B]
        if self._pass is not None:
            is_ranked &= self._pass.rerank
            if self._pass.skip_misses:
                target = interaction[self.ITEM_ID].unsqueeze(1)  # [B, 1]
                is_ranked &= (candidates == target).any(1).cpu()  # [B]
        return is_ranked.nonzero().squeeze(1).to(candidates.device)

    def all_scores(
        self,
        by_retriever: torch.Tensor,
        histories: list[list[int]],
        candidates: torch.Tensor,
        shown: torch.Tensor | None = None,
    ) -> CandidateScores:
        """What is known of candidates, by each stage that has a say.

        Args:
            by_retriever: scores, ``[R, K]``.
            histories, shown: as :meth:`score_candidates` takes them.
            candidates: item ids, int64 ``[R, K]``.
        """
        pools = candidates.cpu()
        evidence = None
        if self.neighbours is not None and self.settings.fuses_evidence:
            evidence = torch.from_numpy(self.neighbours.scores(histories, pools.numpy()))
        ranker = self.score_candidates(histories, pools, shown) if self.ranker_has_a_say else None
        return CandidateScores(by_retriever.cpu(), evidence, ranker)

    def score_candidates(
        self,
        histories: list[list[int]],
        candidates: torch.Tensor,
        shown: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The ranker's log-probabilities of candidates.

        Args:
            histories: item ids of each row.
            candidates: item ids, int64 ``[R, K]`` on the CPU.
            shown: the order of columns in which each prompt shows them, ``[R, K]``.

        Returns:
            float32 ``[R, K]`` on the CPU, in the order of ``candidates``.
        """
        show_progress = self._pass is not None and self._pass.show_progress
        pools = (candidates if shown is None else candidates.gather(1, shown)).tolist()
        histories = [
            self.shown_history(history, pool)
            for history, pool in zip(histories, pools, strict=True)
        ]
        scores = self.ranker.rank(histories, pools, show_progress)
        return scores if shown is None else torch.empty_like(scores).scatter_(1, shown, scores)

    def shown_history(
        self, history: Sequence[int], candidates: Sequence[int], user: int | None = None
    ) -> list[int]:
        """The items that a prompt shows for a history: its last ones, behind any evidence.

        Args:
            history: item ids in chronological order.
            candidates: ids of the items that are ranked.
            user: internal id of the user whose training history is learnt from, and is therefore
                no evidence; ``None`` otherwise.
        """
        recent = list(history[max(0, len(history) - self.settings.prompt_max_history) :])
        if self.neighbours is None or not self.settings.shows_evidence:
            return recent
        return self.neighbours.before(history, candidates, user) + recent

    def final_scores(self, scores: CandidateScores) -> torch.Tensor:
        """Final scores of candidates, ``[R, K]``: the ranker's, or all that are fused."""
        if self.fusion_weight is None and scores.ranker is not None:
            return scores.ranker
        ranker = [(scores.ranker, self.fusion_weight or 0.0)]
        return _fused(scores, [(scores.evidence, self.evidence_weight), *ranker])

    def scores_without_ranker(self, scores: CandidateScores) -> torch.Tensor:
        """Scores of candidates as they would be without a language model, ``[R, K]``."""
        return _fused(scores, [(scores.evidence, self.evidence_weight_alone)])

    def _shown_order(self, users: torch.Tensor, n_candidates: int) -> torch.Tensor:
        """The order in which each user's prompt shows the candidates, ``[users, K]``."""
        if self.settings.rerank_order == "retriever":
            return torch.arange(n_candidates).expand(len(users), -1)
        orders = [
            np.random.default_rng([self.seed, user]).permutation(n_candidates)
            for user in users.tolist()
        ]
        return torch.from_numpy(np.stack(orders))

    def calculate_loss(self, interaction):
        """Not used: ``LlamaRecTrainer`` trains both stages by their own losses."""
        raise RuntimeError("LlamaRec is trained by LlamaRecTrainer, stage by stage.")


def build_ranker(
    settings: LlamaRecSettings,
    texts: Sequence[str],
    device: torch.device,
    adapted: Callable[[PreTrainedModel], PeftModel],
) -> AnyRanker:
    """Load the language model and put prompts, and a verbalizer, beside it.

    Args:
        settings: of the run.
        texts: item texts; the first is the padding item's.
        device: of the language model.
        adapted: puts an adapter into it.

    Returns:
        the ranker of ``ranking_method``.
    """
    base, tokenizer = load_language_model(settings.llm, device)
    template, limit = settings.prompt, settings.prompt_max_tokens or max_positions(base)
    if settings.ranking_method == "likelihood":
        titles = TitleList(
            tokenizer,
            texts,
            settings.likelihood_heading,
            settings.prompt_max_title_tokens,
            limit,
        )
        return LikelihoodRanker(
            adapted(base),
            titles,
            settings.llm_batch_tokens,
            settings.likelihood_temperature,
            settings.likelihood_prior,
        )
    if settings.ranking_method == "generate":
        template = replace(template, instruction=settings.generate_instruction)
        if limit is not None:  # the written list needs positions too: each title and its line
            limit -= settings.rerank_candidates * (settings.prompt_max_title_tokens + 1)
    prompts = PromptBuilder(
        tokenizer,
        texts,
        settings.verbalizer_labels,
        template,
        max_history=settings.prompt_max_history,
        max_title_tokens=settings.prompt_max_title_tokens,
        max_prompt_tokens=limit,
    )
    if settings.ranking_method == "generate":
        return GeneratingRanker(adapted(base), prompts, settings.llm_batch_tokens)
    some_items = range(1, settings.rerank_candidates + 1)
    verbalizer = Verbalizer.for_tokenizer(
        tokenizer,
        settings.verbalizer_labels,
        prompts.text(some_items, some_items),
        settings.prompt.response,
    )
    return Ranker(
        adapted(base),
        prompts,
        verbalizer,
        settings.llm_batch_tokens,
        settings.rerank_permutations,
    )


def _fused(
    scores: CandidateScores, others: Sequence[tuple[torch.Tensor | None, float]]
) -> torch.Tensor:
    """The retriever's scores fused with others that there are, each with its weight."""
    known = [(opinion.numpy(), weight) for opinion, weight in others if opinion is not None]
    opinions, weights = [opinion for opinion, _ in known], [weight for _, weight in known]
    return torch.from_numpy(fused(scores.retriever.numpy(), opinions, weights))


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
