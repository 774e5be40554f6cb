"""``retriever: file``: the candidates of another recommender, read from tables and not trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_llamarec.data.seen import chosen_before
from recbole_llamarec.integration.known import IN_CHECKPOINT
from recbole_llamarec.retrieval.candidate_file import CandidateTable, files_of, read_candidates
from recbole_llamarec.retrieval.candidates import LEFT_OUT

logger = logging.getLogger(__name__)


class FileRetriever(SequentialRecommender):
    """Proposes what the tables of the key ``retriever_file`` give each user, and nothing else.

    With a table for each part, that of ``test`` is for a user's last choice and whatever comes
    behind it, that of ``valid`` for all choices before. The tables are in the ``state_dict``, so
    that a checkpoint needs no file.

    Args:
        config: the retriever's ``Config``.
        dataset: the training part of a ``LlamaRecDataset``.

    Attributes:
        user_starts: int64 ``[tables x users + 1]``; in table ``t``, user ``u`` has the candidates
            ``starts[i]`` to ``starts[i + 1]``, where ``i`` is ``t * users + u``.
        given_items: int64 ``[rows]``.
        given_scores: float32 ``[rows]``.
    """

    leaves_out = True  # see ``candidates.propose``
    user_starts: Tensor
    given_items: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.tokens = dataset.field2id_token[dataset.uid_field]
        counts = np.diff(dataset.chosen.starts)
        self.register_buffer("n_chosen", torch.from_numpy(counts), persistent=False)
        self._set([])
        if config["retriever_file"] != IN_CHECKPOINT:
            self._set(_read_tables(config["retriever_file"], dataset))

    def _set(self, tables: list[CandidateTable]) -> None:
        n_users = len(self.tokens)
        groups = [table.users + part * n_users for part, table in enumerate(tables)]
        group = np.concatenate([*groups, np.empty(0, dtype=np.int64)])  # [rows]
        order = np.argsort(group, kind="stable")
        n_given = np.bincount(group, minlength=max(1, len(tables)) * n_users)
        items = np.concatenate([*(table.items for table in tables), np.empty(0, dtype=np.int64)])
        scores = np.concatenate([*(table.scores for table in tables), np.empty(0, np.float32)])
        starts = np.append(0, np.cumsum(n_given))
        self.register_buffer("user_starts", torch.from_numpy(starts))
        self.register_buffer("given_items", torch.from_numpy(items[order]))
        # a parameter, since RecBole makes an optimizer of a model's parameters and needs one
        self.given_scores = nn.Parameter(torch.from_numpy(scores[order]), requires_grad=False)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Take tables of any length."""
        for name in ("user_starts", "given_items", "given_scores"):
            if (saved := state_dict.get(prefix + name)) is not None:
                own = getattr(self, name)
                own.data = saved.new_empty(saved.shape, device=own.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The given scores; ``LEFT_OUT`` for all other items.

        What is not given was not found, so that as a row's target it gets minus infinity, and
        stands behind the whole catalogue. Nothing else depends on the target.

        Args:
            interaction: RecBole ``Interaction`` of B rows; without targets for recommendations.

        Returns:
            float32 ``[B, n_items]``.

        Raises:
            ValueError: recommendations are asked for a user without candidates.
        """
        users = interaction[self.USER_ID]
        groups = users  # [B]
        if len(self.user_starts) - 1 > len(self.tokens):
            before = chosen_before(interaction)
            is_last = before >= self.n_chosen[users] - 1 if before is not None else 1
            groups = users + len(self.tokens) * is_last
        firsts = self.user_starts[groups]  # [B]
        n_given = self.user_starts[groups + 1] - firsts  # [B]
        rows = torch.arange(len(users), device=users.device).repeat_interleave(n_given)
        within = torch.arange(len(rows), device=users.device)
        within -= (n_given.cumsum(0) - n_given).repeat_interleave(n_given)
        places = firsts[rows] + within
        scores = torch.full((len(users), self.n_items), LEFT_OUT, device=users.device)
        scores[rows, self.given_items[places]] = self.given_scores.data[places]
        if self.ITEM_ID in interaction.interaction:
            targets = interaction[self.ITEM_ID].unsqueeze(1)  # [B, 1]
            of_targets = scores.gather(1, targets)
            missed = of_targets == LEFT_OUT
            scores.scatter_(1, targets, of_targets.masked_fill(missed, -torch.inf))
        elif not n_given.all():
            user = int(users[n_given == 0][0])
            who = f"user {str(self.tokens[user])!r}" if user else "users that are not named"
            raise ValueError(
                f"The retriever is a table, which has no candidates for {who}. Name users that it "
                "has candidates for, or give the candidates to be ranked."
            )
        return scores

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Not used: there is nothing to train."""
        raise RuntimeError("retriever: file is not trained.")


def _read_tables(setting: str | Mapping[str, str], dataset: Any) -> list[CandidateTable]:
    """The tables of the key ``retriever_file``, one or, valid's before test's, two."""
    user_ids = dataset.field2token_id[dataset.uid_field]
    item_ids = dataset.field2token_id[dataset.iid_field]
    tables = []
    for file in files_of(setting):
        try:
            table = read_candidates(file, user_ids, item_ids)
        except (ValueError, ImportError, OSError) as error:
            raise type(error)(f"retriever_file: {error}") from error
        tables.append(table)
        users = np.unique(table.users)
        n_users, n_unknown = dataset.user_num - 1, table.n_rows - len(table.users)
        logger.info(f"{file}: {len(table.users)} candidates of {len(users)} users")
        if n_unknown:
            logger.warning(
                f"{file}: {n_unknown} of {table.n_rows} rows are left out, since the data set has "
                "not their user or not their item"
            )
        if n_users > len(users):
            logger.warning(
                f"{file}: {n_users - len(users)} of the data set's {n_users} users have no "
                "candidates; their rows count as missed"
            )
    return tables
