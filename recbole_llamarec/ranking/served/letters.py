"""The paper's ranker with its language model on a server.

Shapes: B batch, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from recbole_llamarec.ranking.letters import items_to_try, prompts_and_verbalizer
from recbole_llamarec.ranking.model.head import prompt_limit
from recbole_llamarec.ranking.prompt.builder import PromptBuilder
from recbole_llamarec.ranking.protocol import Encoded, Loss, ServedParts
from recbole_llamarec.ranking.served.answers import LabelTokens
from recbole_llamarec.ranking.served.server import LabelReader, LabelServer

N_PROBES = 2  # prompts by which a server's form is found out


class ServedLetters:
    """Ranks candidates as :class:`Letters` does; a server gives the labels' log-probabilities.

    Args:
        prompts: builds token ids from item ids.
        reader: asks the server.
        losses: by which a ranker here would be tuned, by name; nothing is tuned with them.

    Attributes:
        model: an empty module, since there are no weights here.
    """

    def __init__(
        self, prompts: PromptBuilder, reader: LabelReader, losses: Mapping[str, Loss]
    ) -> None:
        self.model = nn.Module()
        self.prompts = prompts
        self.reader = reader
        self.losses = losses

    @classmethod
    def build(cls, parts: ServedParts, losses: Mapping[str, Loss]) -> ServedLetters:
        """Make the ranker, and find out how the server is asked.

        Args:
            parts: what it is built from.
            losses: of the ranker that it stands for.

        Raises:
            ServerError: the server does not answer.
            ValueError: it does not give what is needed; or as :meth:`Letters.build`.
        """
        settings = parts.settings
        server = LabelServer(settings.llm_http)
        # A label is generated behind the prompt.
        limit = prompt_limit(settings.prompt_max_tokens, server.max_tokens, n_behind=1)
        prompts, verbalizer = prompts_and_verbalizer(parts.tokenizer, parts.texts, settings, limit)
        labels = LabelTokens(parts.tokenizer, verbalizer.token_ids)
        items = items_to_try(prompts, settings)
        histories = (items[:n] for n in range(N_PROBES))
        probes = [prompts.encode_shown(history, items)[0] for history in histories]
        return cls(prompts, server.reader(labels, probes), losses)

    @property
    def max_candidates(self) -> int:
        """As many candidates as there are labels."""
        return len(self.reader.labels.token_ids)

    def encode(self, history: Sequence[int], items: Sequence[int]) -> Encoded:
        """Token ids of one prompt; its cost is one request, whatever its length."""
        context, n_history = self.prompts.encode_shown(history, items)
        return Encoded(context, [], len(items), n_history, n_tokens=1)

    def scores(self, batch: Sequence[Encoded]) -> Tensor:
        """Labels' log-probabilities, float32 ``[B, K]``; see :meth:`Ranker.scores`."""
        contexts = [own.context for own in batch]
        return self.reader.log_probabilities(contexts, batch[0].n_candidates)
