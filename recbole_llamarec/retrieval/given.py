"""Candidates from elsewhere in the place of a retriever: the key ``retriever: file``."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_llamarec.data.dataset import PART, TEST
from recbole_llamarec.retrieval.candidate_files import GIVEN, KEY, PARTS, paths_of, read_candidates

OTHERS = torch.finfo(torch.float32).min  # score of an item that is not among a user's candidates

logger = logging.getLogger(__name__)


class GivenCandidates(SequentialRecommender):
    """Each user's candidates for validation and test rows, as a file gives them.

    Nothing is trained. Scores are read as logits: log-probabilities up to a constant. Items that a
    user has no score of stand behind all others, in the order of their ids; of these a row's own
    target comes last, since what nobody has proposed must not count as found.

    The candidates are part of the ``state_dict``, so that a checkpoint needs no file.

    Args:
        config: RecBole's ``Config``; its key ``retriever_file`` is ``None`` where a checkpoint is
            to be loaded.
        dataset: the training part.

    Raises:
        FileNotFoundError, ValueError, ImportError: of the file, with its line.
    """

    user_starts: Tensor  # int64 [2 * n_users + 1]: lists of users for validation, then for test
    items: Tensor  # int64 [candidates]
    scores: Tensor  # float32 [candidates], each list's best is 0

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.n_users = dataset.user_num
        self.fake_loss = nn.Parameter(torch.zeros(1))  # as RecBole's Pop; optimizers need one
        self._set(np.zeros((0, 2), dtype=np.int64), np.zeros(0))
        if config[KEY] is not None:
            self._read(config[KEY], dataset)

    def _read(self, value: Any, dataset: Any) -> None:
        """Take the rows whose user and item the data set has; a warning counts the others."""
        users = dataset.field2token_id[dataset.uid_field]
        items = dataset.field2token_id[dataset.iid_field]
        pairs: list[tuple[int, int]] = []
        scores: list[float] = []
        paths = paths_of(value)
        for file in dict.fromkeys(paths.values()):
            parts = [part for part, path in paths.items() if path == file]
            unknown = {"user": 0, "item": 0}
            named: set[int] = set()
            for row in read_candidates(file):
                user, item = users.get(row.user, 0), items.get(row.item, 0)
                if user and item:
                    named.add(user)
                    pairs += [(user + PARTS.index(part) * self.n_users, item) for part in parts]
                    scores += [row.score] * len(parts)
                else:
                    unknown["item" if user else "user"] += 1
            for kind, n_rows in unknown.items():
                if n_rows:
                    logger.warning(
                        f"{KEY}: {n_rows} rows of {str(file)!r} are left out: the data set has no "
                        f"such {kind}"
                    )
            if n_empty := self.n_users - 1 - len(named):
                logger.warning(
                    f"{KEY}: {n_empty} of {self.n_users - 1} users have no candidates in "
                    f"{str(file)!r}; in their {' and '.join(parts)} rows nothing counts as found"
                )
        self._set(np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(scores))

    def _set(self, pairs: np.ndarray, scores: np.ndarray) -> None:
        """Set the buffers from pairs of list and item, ``[candidates, 2]``, and their scores."""
        order = np.argsort(pairs[:, 0], kind="stable")
        lists, items, scores = pairs[order, 0], pairs[order, 1], scores[order]
        counts = np.bincount(lists, minlength=len(PARTS) * self.n_users)
        best = np.full(len(counts), -np.inf)
        np.maximum.at(best, lists, scores)
        shifted = np.maximum(scores - best[lists], -1e30)  # within float32, above OTHERS
        self.register_buffer("user_starts", torch.from_numpy(np.append(0, np.cumsum(counts))))
        self.register_buffer("items", torch.from_numpy(items))
        self.register_buffer("scores", torch.from_numpy(shifted).float())

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """A checkpoint's table has any number of candidates."""
        for name in ("items", "scores"):
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                own = getattr(self, name)
                setattr(self, name, own.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def is_empty(self) -> bool:
        """Whether there is no candidate of anybody."""
        return len(self.items) == 0

    def places(self, interaction: Any) -> tuple[Tensor, Tensor]:
        """Where a batch's candidates are: rows of the batch, and places in the table.

        A row that does not say its part, as one of a new history, has the user's test candidates.

        Raises:
            ValueError: there are none of such a row's user.
        """
        lists = interaction[self.USER_ID] + self.n_users  # [B]
        says_part = PART in interaction.interaction
        if says_part:
            lists = lists - (interaction[PART] != TEST) * self.n_users
        starts = self.user_starts[lists]  # [B]
        counts = self.user_starts[lists + 1] - starts
        if not says_part and (counts == 0).any():
            raise ValueError(
                f"retriever: {GIVEN} proposes what its file holds, and that has no candidates of a "
                "new user or of one whom it does not name. Name users that it has, or give "
                "candidates to rank."
            )
        rows = torch.repeat_interleave(counts)  # [given]
        first = (counts.cumsum(0) - counts)[rows]
        return rows, starts[rows] + torch.arange(len(rows), device=rows.device) - first

    def given_mask(self, interaction: Any) -> Tensor:
        """Which items are candidates of each row's user, bool ``[B, N]``."""
        rows, places = self.places(interaction)
        mask = torch.zeros(len(interaction), self.n_items, dtype=torch.bool, device=rows.device)
        mask[rows, self.items[places]] = True
        return mask

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The given scores, ``[B, N]``; those of other items are below all of them."""
        rows, places = self.places(interaction)
        scores = torch.full((len(interaction), self.n_items), OTHERS, device=rows.device)
        if self.ITEM_ID in interaction.interaction:
            scores.scatter_(1, interaction[self.ITEM_ID].unsqueeze(1), -torch.inf)
        scores[rows, self.items[places]] = self.scores[places]
        return scores

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Not used: there is nothing to train."""
        raise RuntimeError("retriever: file is not trained.")
