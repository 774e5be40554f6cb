"""LlamaRec as a RecBole model: propose candidates, ask the scorers, fuse, put into order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType

from recbole_llamarec.data.seen import SeenItems, chosen_before, items_to_mask, seen_mask
from recbole_llamarec.evaluation.metrics import require_items
from recbole_llamarec.evaluation.passes import EvaluationPass, best_first_of
from recbole_llamarec.finite import check_finite
from recbole_llamarec.integration.catalogue import tokens_of
from recbole_llamarec.integration.configs import known_keys
from recbole_llamarec.memory import keep_large_memory
from recbole_llamarec.retrieval.candidates import Candidates, behind_the_others, propose
from recbole_llamarec.retrieval.retriever import build_retriever
from recbole_llamarec.scoring.fusion import Fusion
from recbole_llamarec.scoring.scorer import (
    Rows,
    Scorer,
    ScorerParts,
    build_scorers,
    scores_of_open,
)
from recbole_llamarec.settings import LlamaRecSettings, report_unknown_keys


class LlamaRec(SequentialRecommender):
    """LlamaRec (Yue et al., 2023, arXiv 2311.02089): retrieve, then rank.

    The retriever proposes ``rerank_candidates`` items, the scorers score them, and fusion puts them
    into the final order; behind them stands the rest of the catalogue in the retriever's order.
    Item scores are minus the position. The ``state_dict`` holds the retriever; what the scorers
    have learnt and the fusion are among a checkpoint's "other parameters". Until the trainer or a
    checkpoint sets the fusion, the order is the retriever's, and no language model is loaded.

    Args:
        config: RecBole's ``Config``.
        dataset: the training part of a ``LlamaRecDataset``.

    Raises:
        ValueError: a key is wrong or the data set does not suit it; says which and what to do.

    Attributes:
        catalogue: tokens of items and users, which checkpoints hold.
        seen: what each user has chosen in the training part.
        chosen: what each user has chosen in all parts; a row knows how much of it came before.
        scorers: by name, in the order of the fusion.
        fusion: how they decide together with the retriever.
        item_counts: how often each item is a target in training, int64 ``[n_items]``.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        keep_large_memory()
        super().__init__(config, dataset)
        self.settings = LlamaRecSettings.from_config(config)
        unknown = report_unknown_keys(config.external_config_dict, known_keys(config))
        if unknown:
            self.logger.warning(f"Nothing reads these keys: {', '.join(unknown)}")
        self.seed = config["seed"]
        self.catalogue = tokens_of(dataset)
        self.item_texts = dataset.item_texts(self.settings.item_text_fallback)
        self.seen, self.chosen = SeenItems.of_training(dataset), dataset.chosen
        targets = np.asarray(dataset.inter_feat[self.ITEM_ID])
        self.item_counts = np.bincount(targets, minlength=self.n_items)
        require_items(config["topk"], self.n_items - 1)
        self._check_catalogue()
        self.retriever, self.retriever_config = build_retriever(
            config, self.settings.retriever, self.settings.retriever_config or {}, dataset
        )
        parts = ScorerParts(
            self.settings, dataset, self.item_texts, self.n_items, config["device"], self.seed
        )
        self.scorers: dict[str, Scorer] = {own.name: own for own in build_scorers(parts)}
        self.fusion = Fusion(None)
        self._pass: EvaluationPass | None = None

    def _check_catalogue(self) -> None:
        masks = self.settings.rerank_mask_seen
        longest = self.chosen.most(but_last=True) if masks else self.seen.most()
        needed = self.settings.rerank_candidates + longest
        if self.n_items - 1 < needed:
            raise ValueError(
                f"rerank_candidates: {self.settings.rerank_candidates} candidates and the longest "
                f"history of {longest} items need a catalogue of {needed} items, but there "
                f"are {self.n_items - 1}. Use fewer candidates, or filter the data less."
            )

    # --- checkpoints ---------------------------------------------------------------------------

    def other_parameter(self) -> dict[str, Any]:
        """For RecBole's checkpoint: the fusion and what each scorer has learnt."""
        states = {name: scorer.state() for name, scorer in self.scorers.items()}
        return {"fusion": self.fusion.state(), "scorers": states}

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        """Take the fusion and the scorers' states from a checkpoint.

        Raises:
            ValueError: the checkpoint is of a version that kept them in another form.
        """
        if not para:
            return
        if "fusion" not in para:
            raise ValueError(
                "This checkpoint was written by recbole-llamarec 0.1, whose fusion and adapter "
                "this version does not read. Its retriever can be used with retriever_checkpoint "
                "(the file ….LRURec.pth beside it) and its adapter with lora_adapter (the folder "
                "….adapter beside it)."
            )
        for name, state in para["scorers"].items():
            if name in self.scorers:
                self.scorers[name].load(state)
        self.fusion = Fusion.from_state(para["fusion"])

    # --- scoring -------------------------------------------------------------------------------

    def full_sort_predict(self, interaction) -> torch.Tensor:
        """Score all items of each row: minus the position in the final order.

        Args:
            interaction: a batch of RecBole's evaluation data. Its target is read only to skip rows
                (``EvaluationPass.skip_misses``) and by the pass's records; no scorer sees it.

        Returns:
            float32 ``[B, N]`` without ties; the padding item stands last.

        Raises:
            RuntimeError: scoring failed in a way that RecBole would take for "not implemented".
        """
        try:
            return self.reordered(interaction, self.propose(interaction))
        except NotImplementedError as error:  # RecBole would fall back to item-by-item scoring
            raise RuntimeError(f"LlamaRec cannot score this batch: {error}") from error

    def reordered(self, interaction, candidates: Candidates) -> torch.Tensor:
        """:meth:`full_sort_predict` of a batch whose candidates :meth:`propose` has given."""
        ranked = self._rows_to_rank(interaction, candidates)  # [R]
        items = candidates.items[ranked].cpu()  # [R, K]
        retriever = candidates.scores[ranked].cpu()  # [R, K]
        masked = candidates.masked[ranked].cpu()  # [R, K]
        opinions = self.opinions(self.rows_of(interaction, ranked), items, masked)
        final = self.final_scores(retriever, opinions)  # [R, K]
        best_first = best_first_of(final.masked_fill(masked, -torch.inf))  # [R, K]
        if self._pass is not None:
            users, targets = interaction[self.USER_ID].cpu(), interaction[self.ITEM_ID].cpu()
            ranks = 1 + (candidates.order.cpu() == targets.unsqueeze(1)).int().argmax(1)  # [B]
            self._pass.note(users, targets, ranks, interaction[self.ITEM_SEQ_LEN].cpu())
            self._pass.note_ranked(ranked.cpu(), items, retriever, opinions, best_first, masked)
        return candidates.reordered(ranked, best_first.to(ranked.device))

    def predict(self, interaction) -> torch.Tensor:
        """Score the given item of each row, as :meth:`full_sort_predict` does; ``[B]``."""
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID].unsqueeze(1)).squeeze(1)

    def propose(
        self, interaction, seen: SeenItems | None = None, users: torch.Tensor | None = None
    ) -> Candidates:
        """The retriever's candidates, items already seen last where they are masked.

        Args:
            interaction: users and histories.
            seen: what each user has seen beside the history in ``interaction``; if left out, what
                the data set says that they chose before the row.
            users: whom ``seen`` knows each row as, ``[B]``; the interaction's if left out.
        """
        users = interaction[self.USER_ID] if users is None else users
        before = chosen_before(interaction) if seen is None else None
        to_mask = items_to_mask(self.settings.rerank_mask_seen, seen or self.chosen)
        masked = None
        if to_mask is not None:
            masked = seen_mask(users, interaction[self.ITEM_SEQ], to_mask, self.n_items, before)
        return propose(self.retriever, interaction, self.settings.rerank_candidates, masked)

    def rows_of(self, interaction, rows: torch.Tensor) -> Rows:
        """Users and unpadded histories of some rows of a batch; ``rows`` int64 ``[R]``."""
        histories = interaction[self.ITEM_SEQ][rows].tolist()
        lengths = interaction[self.ITEM_SEQ_LEN][rows].tolist()
        users = interaction[self.USER_ID][rows].cpu()
        return Rows([row[:n] for row, n in zip(histories, lengths, strict=True)], users)

    def opinions(
        self, rows: Rows, items: torch.Tensor, masked: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Each scorer's scores of candidates; of those alone that the order depends on.

        During an evaluation pass with ``all_scorers``, every scorer is asked.

        Args:
            rows: R of them.
            items: candidates, int64 ``[R, K]`` on the CPU.
            masked: those that take no part, bool ``[R, K]`` on the CPU; no scorer sees them.

        Returns:
            by name, float32 ``[R, K]`` on the CPU; masked candidates are far below all others.

        Raises:
            NotFiniteError: a score is NaN or infinite.
        """
        asks_all = self._pass is not None and self._pass.all_scorers
        opinions = {
            name: behind_the_others(scores_of_open(scorer, rows, items, masked), masked)
            for name, scorer in self.scorers.items()
            if asks_all or self.fusion.takes_part(name)
        }
        for name, scores in opinions.items():
            check_finite(scores, f"scores of {name}", "Leave the scorer out, or mend it.")
        return opinions

    def final_scores(
        self, retriever: torch.Tensor, opinions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Final scores of candidates, float64 ``[R, K]`` on the CPU.

        Raises:
            NotFiniteError: one is NaN or infinite.
        """
        arrays = {name: scores.numpy() for name, scores in opinions.items()}
        stage = self.fusion.final(self.settings.retriever)
        final = torch.from_numpy(stage.scores(retriever.numpy(), arrays))  # [R, K]
        remedy = f"Its weights are {self.fusion.weights}: set rerank_fusion, or fit them again."
        check_finite(final, "fusion's final scores", remedy)
        return final

    def _rows_to_rank(self, interaction, candidates: Candidates) -> torch.Tensor:
        """Rows whose candidates are scored, int64 ``[R]``."""
        current, n_rows = self._pass, len(candidates.items)
        is_needed = self.fusion.changes_order
        if current is not None:
            asks_all = current.all_scorers and bool(self.scorers)
            is_needed = current.rerank and (is_needed or asks_all)
        is_ranked = torch.full((n_rows,), is_needed, device=candidates.items.device)  # [B]
        if current is not None and current.skip_misses:
            target = interaction[self.ITEM_ID].unsqueeze(1)  # [B, 1]
            is_ranked &= ((candidates.items == target) & ~candidates.masked).any(1)
        return is_ranked.nonzero().squeeze(1)

    @contextmanager
    def evaluating(self, **options) -> Iterator[EvaluationPass]:
        """Score one pass over evaluation data as :class:`EvaluationPass` says."""
        previous, self._pass = self._pass, EvaluationPass(**options)
        try:
            yield self._pass
        finally:
            self._pass = previous

    def calculate_loss(self, interaction):
        """Not used: ``LlamaRecTrainer`` trains both stages by their own losses."""
        raise RuntimeError("LlamaRec is trained by LlamaRecTrainer, stage by stage.")

    @property
    def scorer_names(self) -> Sequence[str]:
        """Names of the scorers, in the order of the fusion."""
        return list(self.scorers)
