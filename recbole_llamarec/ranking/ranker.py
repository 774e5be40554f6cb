"""The ranker: history and candidates in, one score for each candidate out, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from recbole_llamarec.ranking.batching import length_batches
from recbole_llamarec.ranking.language_model import final_softcap, last_hidden_of, output_head
from recbole_llamarec.ranking.prompt import PromptBuilder
from recbole_llamarec.ranking.verbalizer import Verbalizer


class Ranker:
    """Ranks candidates for a history with a language model, a prompt and a verbalizer.

    It is no ``nn.Module``, so that a recommender that holds one does not save the language model
    with its own weights.

    Args:
        model: a causal language model, with or without an adapter.
        prompts: builds token ids from item ids.
        verbalizer: reads one score for each label.
        batch_tokens: tokens of one forward pass, padding included.
    """

    def __init__(
        self, model, prompts: PromptBuilder, verbalizer: Verbalizer, batch_tokens: int
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.verbalizer = verbalizer
        self.batch_tokens = batch_tokens

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def label_logits(self, prompts: Sequence[Sequence[int]], n_candidates: int) -> torch.Tensor:
        """Label logits of one batch, with gradients where they are enabled (paper, section 3.2).

        Only the last position's hidden state meets the head, and only its label rows.

        Args:
            prompts: token ids of each prompt.
            n_candidates: candidates in every prompt, K.

        Returns:
            float32 ``[batch, K]``.
        """
        hidden = last_hidden_of(self.model, prompts)  # [B, H]
        return self.verbalizer.scores(
            hidden, output_head(self.model), n_candidates, final_softcap(self.model)
        )  # [B, K]

    @torch.no_grad()
    def rank(
        self,
        histories: Sequence[Sequence[int]],
        candidates: Sequence[Sequence[int]],
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Log-probability of each candidate to be the next item.

        Args:
            histories: item ids of each user in chronological order, any length.
            candidates: item ids to rank, equally many (K) for each user.
            show_progress: show a progress bar over prompts.

        Returns:
            float32 ``[users, K]`` on the CPU, in the order of ``candidates``; every row sums to 1
            in probability.
        """
        if not len(histories):
            return torch.zeros(0, 0)
        n_candidates = len(candidates[0])
        encoded = self.prompts.encode_all(histories, candidates)
        result = torch.empty(len(encoded), n_candidates)
        self.model.eval()
        with tqdm(
            total=len(encoded), desc="Rank", unit="prompt", ncols=100, disable=not show_progress
        ) as progress:
            for batch in length_batches([len(prompt) for prompt in encoded], self.batch_tokens):
                logits = self.label_logits([encoded[i] for i in batch], n_candidates)  # [b, K]
                result[torch.from_numpy(batch)] = logits.log_softmax(-1).cpu()
                progress.update(len(batch))
        return result
