"""The ranker's training samples: rows of the training part, their histories and candidates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from recbole_llamarec.data.chronology import runs_of
from recbole_llamarec.data.seen import CHOSEN_BEFORE
from recbole_llamarec.retrieval.candidates import top_candidates
from recbole_llamarec.scoring.evidence import Evidence
from recbole_llamarec.training_keys import pool_size
from recbole_llamarec.tuning.pools import blocks_of_positions, random_pool, retriever_pool

N_RECENT = 5  # of a history's items, that evidence teaches by


class Samples(NamedTuple):
    """Prompts to learn from.

    Attributes:
        histories: item ids of each, the oldest first.
        pools: candidates of each, K item ids.
        targets: how likely each candidate is to be, float32 ``[B, K]``; every row sums to 1.
    """

    histories: list[list[int]]
    pools: list[list[int]]
    targets: np.ndarray


class TuningSamples:
    """Draws samples from the rows of a training part, as the ``train_*`` keys say.

    Args:
        model: ``LlamaRec``, whose retriever is trained.
        dataset: the training part, one row for each prefix of a history.
        seed: samples depend on it, on the epoch, and on step and row alone.
    """

    def __init__(self, model, dataset, seed: int) -> None:
        self.model, self.settings, self.seed = model, model.settings, seed
        settings = self.settings
        self.pool_key, self.n_candidates = pool_size(
            settings.train_pool, settings.rerank_candidates
        )
        self.inter = dataset.inter_feat
        self.users = self.inter[model.USER_ID].numpy()
        self.targets = self.inter[model.ITEM_ID].numpy()
        self.sequences = self.inter[model.ITEM_SEQ].numpy()
        self.lengths = self.inter[model.ITEM_SEQ_LEN].numpy()
        positions = self.settings.train_positions
        order, runs = runs_of(self.users, self.inter[CHOSEN_BEFORE].numpy())
        self.blocks, self.later = np.empty((2, len(order)), dtype=np.int64)
        self.blocks[order], self.later[order] = blocks_of_positions(runs, positions)
        self.evidence: Evidence | None = None
        if settings.train_evidence:
            self.evidence = Evidence.of(dataset, N_RECENT, settings.evidence_window)

    def __len__(self) -> int:
        return len(self.users)

    def batches(self, n_epochs: int, batch_size: int) -> list[np.ndarray]:
        """Rows of each optimizer step: every epoch a new order, at most ``train_max_samples``.

        The rows of a block stay together (``train_positions``).
        """
        batches: list[np.ndarray] = []
        n_blocks = self.blocks.max(initial=-1) + 1
        for epoch in range(n_epochs):
            generator = np.random.default_rng([self.seed, epoch])
            places = np.argsort(generator.permutation(n_blocks))
            order = np.argsort(places[self.blocks], kind="stable")
            order = order[: self.settings.train_max_samples]
            batches += [
                order[start : start + batch_size] for start in range(0, len(order), batch_size)
            ]
        return batches

    def draw(self, rows: np.ndarray, step: int, with_candidates: bool = True) -> Samples:
        """The samples of some rows.

        Args:
            rows: of the training part, ``[B]``.
            step: of the optimizer; candidates are drawn anew at each.
            with_candidates: False gives the target as the only candidate.
        """
        histories = self._histories(rows)
        if not with_candidates:
            alone = [[int(target)] for target in self.targets[rows]]
            return Samples(histories, alone, np.ones((len(rows), 1), dtype=np.float32))
        copies = self._is_copy(rows, step)  # [B]
        drawn, wanted = self._pools(rows, step), self.targets[rows]
        for place in np.flatnonzero(copies):
            drawn[place], wanted[place] = self._copy(rows[place], step, histories[place])
        pools = np.stack(drawn)  # [B, K]
        targets = (pools == wanted[:, None]).astype(np.float32)  # [B, K]
        if self.evidence is not None:
            for place in np.flatnonzero(~copies):
                share = self.settings.train_evidence if targets[place].any() else 1.0
                by_evidence = self._by_evidence(self.evidence, rows[place], pools[place])
                targets[place] = (1 - share) * targets[place] + share * by_evidence
        return Samples(histories, pools.tolist(), targets)

    def _histories(self, rows: np.ndarray) -> list[list[int]]:
        """The most recent items before each row's target.

        The window moves on with a user's positions. Within a block it begins where the last
        position's begins, so that the prompts have their beginning in common.
        """
        histories = []
        for row in rows:
            shown = max(1, self.settings.prompt_max_history - self.later[row])
            length = self.lengths[row]
            histories.append(self.sequences[row, max(0, length - shown) : length].tolist())
        return histories

    def _pools(self, rows: np.ndarray, step: int) -> list[np.ndarray]:
        """Candidates of each row, as ``train_candidates`` says."""
        settings, seen = self.settings, self.model.seen
        if settings.train_candidates == "retrieved":
            return self._retrieved(rows, step)
        if settings.train_candidates != "retriever":
            return [self._random_pool(row, self.targets[row], step) for row in rows]
        # All that the user has seen in training stands last, the target too; it may still be
        # among the first of a small catalogue.
        depth = settings.train_candidates_from
        ranked = top_candidates(self.model.retriever, self.inter[rows], depth + 1, seen).numpy()
        pools = []
        for row, items in zip(rows, ranked, strict=True):
            generator = np.random.default_rng([self.seed, step, row, 1])
            left_out = np.append(seen.of(self.users[row]), 0)  # 0 pads, behind a small catalogue
            unseen = items[~np.isin(items, left_out)]
            pools.append(
                retriever_pool(
                    *(self.targets[row], unseen, self.n_candidates, depth, generator),
                    key=self.pool_key,
                )
            )
        return pools

    def _retrieved(self, rows: np.ndarray, step: int) -> list[np.ndarray]:
        """The retriever's first items, shuffled: of what the user chose, the target alone."""
        ranked = top_candidates(
            *(self.model.retriever, self.inter[rows], self.n_candidates, self.model.seen),
            unmasked=torch.from_numpy(self.targets[rows]),
        ).numpy()
        return [
            np.random.default_rng([self.seed, step, row, 1]).permutation(items)
            for row, items in zip(rows, ranked, strict=True)
        ]

    def _by_evidence(self, evidence: Evidence, row: int, pool: np.ndarray) -> np.ndarray:
        """Evidence's probabilities among a row's candidates ``[K]``, without the row itself."""
        history = self.sequences[row, : self.lengths[row]].tolist()
        shares = evidence.shares(history, pool, uncounted=self.targets[row])
        return shares / shares.sum()

    def _is_copy(self, rows: np.ndarray, step: int) -> np.ndarray:
        """Which samples have their history's item as target, bool ``[B]``: fewer at each step."""
        n_steps = self.settings.train_binding_steps
        share = 1 - (step - 1) / n_steps if n_steps else 0.0
        draws = [np.random.default_rng([self.seed, step, row, 3]).random() for row in rows]
        return np.array(draws) < share

    def _copy(self, row: int, step: int, history: list[int]) -> tuple[np.ndarray, int]:
        """Candidates of a row, and the one of them that its history shows."""
        target = np.random.default_rng([self.seed, step, row, 2]).choice(history)
        return self._random_pool(row, target, step), target

    def _random_pool(self, row: int, target: int, step: int) -> np.ndarray:
        """Candidates of a row: a target among items that its user has not seen."""
        is_popular = self.settings.train_candidates == "popular"
        return random_pool(
            *(target, self.model.seen.of(self.users[row]), self.model.n_items, self.n_candidates),
            np.random.default_rng([self.seed, step, row]),
            self.model.item_counts if is_popular else None,
            key=self.pool_key,
        )
