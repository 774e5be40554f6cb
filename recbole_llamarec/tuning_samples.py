"""The ranker's training samples: rows of the training part, their histories and candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recbole_llamarec.retrieval.candidates import top_candidates
from recbole_llamarec.tuning.pools import blocks_of_positions, random_pool, retriever_pool

Pool = tuple[np.ndarray, int]  # candidates [K], and the target's place among them


class TuningSamples:
    """Draws samples from the rows of a training part, as the ``train_*`` keys say.

    Args:
        model: ``LlamaRec``, whose retriever is trained.
        dataset: the training part, one row for each prefix of a history.
        seed: what is drawn depends on it, on the epoch, and on step and row alone.
    """

    def __init__(self, model, dataset, seed: int) -> None:
        self.model, self.settings, self.seed = model, model.settings, seed
        self.inter = dataset.inter_feat
        self.users = self.inter[model.USER_ID].numpy()
        self.targets = self.inter[model.ITEM_ID].numpy()
        self.sequences = self.inter[model.ITEM_SEQ].numpy()
        self.lengths = self.inter[model.ITEM_SEQ_LEN].numpy()
        positions = self.settings.train_positions
        self.blocks, self.later = blocks_of_positions(self.users, positions)

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

    def histories(self, rows: np.ndarray) -> list[list[int]]:
        """The most recent items before each row's target.

        The window moves on with a user's positions. Within a block it begins where the last
        position's begins, so that the prompts have their beginning in common.
        """
        found = []
        for row in rows:
            shown = max(1, self.settings.prompt_max_history - self.later[row])
            length = self.lengths[row]
            found.append(self.sequences[row, max(0, length - shown) : length].tolist())
        return found

    def histories_with_evidence(self, rows: np.ndarray, pools: Sequence[Pool]) -> list[list[int]]:
        """What ranking by likelihood shows of each row's history before its candidates."""
        found = []
        for row, (candidates, _) in zip(rows, pools, strict=True):
            history = self.sequences[row, : self.lengths[row]].tolist()
            user = int(self.users[row])  # learnt from, and therefore no evidence
            found.append(self.model.shown_history(history, candidates.tolist(), user))
        return found

    def choices(self, rows: np.ndarray, pools: Sequence[Pool]) -> np.ndarray:
        """How likely each candidate is to be, as ``train_loss`` says; float64 ``[rows, K]``.

        ``label`` is sure of the target. ``evidence`` has the candidates' shares among those that
        followed the history's last items: less to learn from than what a user chose, but twenty
        figures a row without any chance in them (distillation, Hinton et al. 2015).
        """
        labels = np.array([label for _, label in pools])
        if self.settings.train_loss != "evidence":
            return np.eye(self.settings.rerank_candidates)[labels]
        shares = np.stack(
            [
                self.model.neighbours.summed_shares(
                    self.sequences[row, : self.lengths[row]], candidates, int(self.users[row])
                )
                for row, (candidates, _) in zip(rows, pools, strict=True)
            ]
        )  # [rows, K]
        return shares / shares.sum(1, keepdims=True)

    def histories_with_targets(self, rows: np.ndarray) -> list[list[int]]:
        """The most recent items before each row's target, and the target behind them."""
        pairs = zip(self.histories(rows), self.targets[rows].tolist(), strict=True)
        return [[*history, target] for history, target in pairs]

    def pools(self, rows: np.ndarray, step: int) -> list[Pool]:
        """Candidates of each row, as ``train_candidates`` says."""
        settings = self.settings
        if settings.train_candidates == "random":
            return [self._random(row, step) for row in rows]
        depth = settings.train_candidates_from + 1  # the target may be among them
        # All that the user has seen in training stands last, the target too.
        retriever, seen = self.model.retriever, self.model.seen
        ranked = top_candidates(retriever, self.inter[rows], depth, seen).numpy()
        pools = []
        for row, items in zip(rows, ranked, strict=True):
            generator = np.random.default_rng([self.seed, step, row, 1])
            if settings.train_candidates == "mixed" and generator.random() < 0.5:
                pools.append(self._random(row, step))
                continue
            left_out = np.append(seen.of(self.users[row]), 0)  # 0 pads, behind a small catalogue
            unseen = items[~np.isin(items, left_out)]
            sizes = settings.rerank_candidates, settings.train_candidates_from
            pools.append(retriever_pool(self.targets[row], unseen, *sizes, generator))
        return pools

    def for_label_prior(self) -> tuple[list[list[int]], list[list[int]]]:
        """Histories and random pools of ``rerank_label_prior_rows`` rows."""
        order = np.random.default_rng(self.seed).permutation(len(self))
        rows = np.sort(order[: self.settings.rerank_label_prior_rows])
        candidates = [self._random(row, step=0)[0].tolist() for row in rows]
        return self.histories(rows), candidates

    def _random(self, row: int, step: int) -> Pool:
        return random_pool(
            self.targets[row],
            self.model.seen.of(self.users[row]),
            self.model.n_items,
            self.settings.rerank_candidates,
            np.random.default_rng([self.seed, step, row]),
        )
