"""A trained LlamaRec as a program uses it: recommend for histories, rank given candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llamarec.data.seen import SeenItems
from recbole_llamarec.evaluation.passes import best_first_of
from recbole_llamarec.finite import naming_stage
from recbole_llamarec.given_candidates import (
    Candidate,
    RankedCandidate,
    given_ids,
    listed,
    rank_given,
)
from recbole_llamarec.integration.checkpoints import load_data_and_model
from recbole_llamarec.ranking.protocol import Prompts
from recbole_llamarec.scoring.language_model import LanguageModel, language_model_of
from recbole_llamarec.scoring.scorer import Rows


@dataclass(frozen=True)
class Recommendation:
    """One item of a result.

    Attributes:
        item: its token; ``None`` for a candidate given by text alone.
        text: its title, as the prompt shows it where there is one.
        rank: in the result, from 1.
        score: final score among the candidates, higher is better; ``None`` behind them, for items
            that the user has seen, and where the order is the retriever's.
        probability: the language model's, among the candidates; ``None`` likewise, and where it
            has no weight and was not asked.
        retriever_rank: rank in the catalogue by the retriever alone; ``None`` for candidates that
            were given, which it does not see.
    """

    item: str | None
    text: str
    rank: int
    score: float | None
    probability: float | None
    retriever_rank: int | None


class Recommender:
    """Recommends with a trained LlamaRec.

    Args:
        model: a trained ``LlamaRec``.
        dataset: the RecBole data set that it was trained on.
    """

    def __init__(self, model, dataset) -> None:
        self.model = model.eval()
        self.dataset = dataset
        self.tokens: np.ndarray = dataset.field2id_token[dataset.iid_field]
        self._ids = {token: i for i, token in enumerate(self.tokens.tolist()) if i}

    @classmethod
    def from_checkpoint(cls, file: str | Path, data_path: str | Path | None = None) -> Recommender:
        """Load a checkpoint of ``LlamaRec`` and the data set that its configuration names.

        Args:
            file: the checkpoint; nothing in it is run.
            data_path: folder that holds the data set's folder, as RecBole's key ``data_path``,
                which is not taken from the file; RecBole's default (``dataset/``) if left out.

        Raises:
            FileNotFoundError, ValueError: there is none, or it is of another model.
        """
        config, model, dataset, *_ = load_data_and_model(file, data_path)
        if config["model"] != "LlamaRec":
            raise ValueError(f"{str(file)!r} holds a {config['model']}; give one of LlamaRec.")
        return cls(model, dataset)

    @property
    def language_model(self) -> LanguageModel | None:
        """The scorer that reads prompts, if the model has one."""
        return language_model_of(self.model.scorers.values())

    @property
    def prompts(self) -> Prompts | None:
        """The language model's prompts, if it has any; loads it on first use."""
        return None if self.language_model is None else self.language_model.ranker.prompts

    @property
    def is_language_model_used(self) -> bool:
        """Whether the final order depends on the language model, so that it is asked."""
        scorer = self.language_model
        return scorer is not None and self.model.fusion.takes_part(scorer.name)

    @property
    def texts(self) -> Sequence[str]:
        """The text of each item id, as prompts show it where the language model has weight."""
        prompts = self.prompts if self.is_language_model_used else None
        return self.model.item_texts if prompts is None else prompts.titles

    def ids_of(self, tokens: Sequence[str]) -> list[int]:
        """Item ids of tokens.

        Raises:
            ValueError: they are no list, or the data set does not have one, which is named.
        """
        if unknown := [token for token in listed(tokens) if token not in self._ids]:
            raise ValueError(
                f"The data set {self.dataset.dataset_name!r} has no item {unknown[0]!r}"
                + (f" (nor {len(unknown) - 1} others)" if len(unknown) > 1 else "")
                + "; histories are item tokens of its .inter file, after filtering."
            )
        return [self._ids[token] for token in tokens]

    @torch.no_grad()
    @naming_stage("recommend")
    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        users: Sequence[str] | None = None,
    ) -> list[list[Recommendation]]:
        """The best items for each history, of users known or new.

        The first ``rerank_candidates`` items of the retriever are put into the final order; what
        comes behind them is in the retriever's. Scorers whose weight is 0 are not asked.

        Args:
            histories: item tokens in chronological order, at least one each.
            k: items of each result.
            users: user tokens, for retrievers that know their users; new users if left out. Items
                of the whole history, and of a known user's training part, stand last.

        Returns:
            for each history ``k`` recommendations, best first; fewer where fewer are given.

        Raises:
            ValueError: an item or user is unknown, a history is empty, or k is out of range.
        """
        model, n_candidates = self.model, self.model.settings.rerank_candidates
        if not 1 <= k < model.n_items:
            raise ValueError(f"k is {k}; it must be from 1 to {model.n_items - 1}.")
        ids = [self.ids_of(history) for history in histories]
        if not ids:
            return []
        interaction, seen = self._rows(ids, users)
        candidates = model.propose(interaction, seen, torch.arange(len(ids)))
        n_open = candidates.n_open.tolist()
        order = candidates.order.cpu()  # [B, N]
        final = order.clone()
        details: list[dict[int, tuple[float, float | None]]] = [{} for _ in ids]
        if model.fusion.changes_order:
            items = candidates.items.cpu()  # [B, K]
            rows = Rows(ids, interaction[model.USER_ID].cpu())
            masked = candidates.masked.cpu()  # [B, K], behind all others
            opinions = model.opinions(rows, items, masked)
            scores = model.final_scores(candidates.scores.cpu(), opinions)  # [B, K]
            best_first = best_first_of(scores.masked_fill(masked, -torch.inf))
            final[:, :n_candidates] = items.gather(1, best_first)
            read = opinions.get(self.language_model.name) if self.language_model else None
            probabilities = np.full(items.shape, None) if read is None else read.exp()  # [B, K]
            details = [
                dict(zip(row[:n], zip(final_scores, chances, strict=True), strict=False))
                for row, n, final_scores, chances in zip(
                    items.tolist(), n_open, scores.tolist(), probabilities.tolist(), strict=True
                )
            ]
        retrieved = order[:, : max(k, n_candidates)].tolist()  # no other can be in the result
        shown = final[:, :k].tolist()
        if getattr(model.retriever, "leaves_out", False):  # what is not given is no result
            shown = [row[:n] for row, n in zip(shown, n_open, strict=True)]
        return [self._result(*row) for row in zip(shown, retrieved, details, strict=True)]

    def _rows(
        self, histories: list[list[int]], users: Sequence[str] | None
    ) -> tuple[Interaction, SeenItems]:
        """RecBole's batch of the histories, and what each row's user has seen."""
        if not all(histories):
            raise ValueError("A history is empty; give at least one item that the user has chosen.")
        model, dataset = self.model, self.dataset
        longest = model.max_seq_length
        sequences = torch.zeros(len(histories), longest, dtype=torch.int64)  # [B, L]
        recent = [history[-longest:] for history in histories]
        for row, items in zip(sequences, recent, strict=True):
            row[: len(items)] = torch.tensor(items)
        user_ids = torch.zeros(len(histories), dtype=torch.int64)
        if users is not None:
            known = dataset.field2token_id[dataset.uid_field]
            if unknown := [user for user in listed(users) if user not in known]:
                raise ValueError(f"The data set has no user {unknown[0]!r}; leave users out.")
            user_ids = torch.tensor([known[user] for user in users])
        interaction = Interaction(
            {
                model.USER_ID: user_ids,
                model.ITEM_SEQ: sequences,
                model.ITEM_SEQ_LEN: torch.tensor([len(items) for items in recent]),
            }
        ).to(model.device)
        chosen = zip(histories, user_ids.tolist(), strict=True)  # nobody has chosen as user 0
        return interaction, SeenItems.from_histories(
            [[*history, *model.seen.of(user)] for history, user in chosen]
        )

    def _result(
        self,
        items: list[int],
        retrieved: list[int],
        details: Mapping[int, tuple[float, float | None]],
    ) -> list[Recommendation]:
        places = {item: place for place, item in enumerate(retrieved, start=1)}
        texts, not_ranked = self.texts, (None, None)
        return [
            Recommendation(
                item=str(self.tokens[item]),
                text=texts[item],
                rank=rank,
                score=details.get(item, not_ranked)[0],
                probability=details.get(item, not_ranked)[1],
                retriever_rank=places[item],
            )
            for rank, item in enumerate(items, start=1)
        ]

    # --- given candidates ----------------------------------------------------------------------

    def rank(
        self, history: Sequence[Candidate], candidates: Sequence[Candidate]
    ) -> list[Recommendation]:
        """Rank given candidates by the language model: :meth:`rank_many` for one history."""
        return self.rank_many([history], [candidates])[0]

    def rank_many(
        self, histories: Sequence[Sequence[Candidate]], pools: Sequence[Sequence[Candidate]]
    ) -> list[list[Recommendation]]:
        """Rank given candidates by the language model, whatever the retriever thinks of them.

        More candidates than labels are ranked in windows that overlap by half, from the back to
        the front, so that the best can move from the last place to the first (as RankGPT does: Sun
        et al. 2023); scores are then those of the last window that an item stood in, and order
        items within it only. Windows of equal size are scored together. Likelihood needs none.

        Args:
            histories: item tokens in chronological order, or ``{"text": ...}`` for items that the
                data set does not have; they may be empty.
            pools: the candidates of each history, two or more, distinct, given likewise.

        Returns:
            each pool, best first; ``score`` is the ranker's log-probability.

        Raises:
            ValueError: an item is unknown, or candidates are fewer than two or repeated.
        """
        return [
            [
                Recommendation(
                    item=given if isinstance(given := pool[own.place], str) else None,
                    text=own.title,
                    rank=rank,
                    score=own.score,
                    probability=float(np.exp(own.score)),
                    retriever_rank=None,
                )
                for rank, own in enumerate(ranked, start=1)
            ]
            for pool, ranked in zip(pools, self.rank_places(histories, pools), strict=True)
        ]

    @torch.no_grad()
    @naming_stage("rank")
    def rank_places(
        self, histories: Sequence[Sequence[Candidate]], pools: Sequence[Sequence[Candidate]]
    ) -> list[list[RankedCandidate]]:
        """What :meth:`rank_many` ranks, by each candidate's place in its pool."""
        return rank_given(self._reader(), self.ids_of, histories, pools)

    def prompt(self, history: Sequence[Candidate], candidates: Sequence[Candidate]) -> str:
        """The text that the language model reads for candidates as :meth:`rank_many` takes them.

        Raises:
            ValueError: as there; or there are more candidates than labels.
        """
        prompts = self._reader().ranker.prompts
        with given_ids(prompts, self.ids_of, [history], [candidates]) as ((shown,), (pool,)):
            return prompts.text(shown, pool)

    def _reader(self) -> Any:
        """The language model, which must have prompts."""
        scorer = self.language_model
        if scorer is None or self.prompts is None:
            raise ValueError(
                "This model has no language model that reads prompts (ranking_method: "
                f"{self.model.settings.ranking_method})."
            )
        return scorer
