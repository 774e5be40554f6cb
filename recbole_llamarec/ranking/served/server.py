"""Labels' log-probabilities from an OpenAI-compatible server, many prompts at a time.

Shapes: B prompts, K candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from recbole_llamarec.finite import RowError
from recbole_llamarec.ranking.served.answers import LabelTokens, label_log_probabilities
from recbole_llamarec.ranking.served.client import BadAnswerError, Client, RefusedError
from recbole_llamarec.ranking.served.forms import BIASED, NAMED, TOP, Form
from recbole_llamarec.ranking.served.settings import HttpSettings

TOLERANCE = 0.02  # nats by which two forms may differ: rounding, and passes of other sizes
SHOWN = 5  # labels that a message names
logger = logging.getLogger(__name__)
Found = dict[int, float]


class MissingLabelsError(RowError):
    """An answer lacks labels, so that its prompt cannot be ranked."""


class LabelServer:
    """A server with a language model.

    Args:
        settings: which one.

    Raises:
        ServerError: it does not answer.
        ValueError: it does not have the model.

    Attributes:
        url: where its API begins.
        model: the model's name on it.
        max_tokens: most tokens of a prompt and the label behind it; ``None`` where it is not told.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self.url = settings.address
        self._client = Client(self.url, settings.timeout)
        listed = self._client.ask("/models").get("data")
        models = {
            str(one["id"]): one
            for one in (listed if isinstance(listed, list) else [])
            if isinstance(one, dict) and "id" in one
        }
        names = list(models)
        if settings.model is None and len(names) != 1:
            raise ValueError(
                f"llm_http_model: {self.url} has {len(names)} models"
                f"{': ' + ', '.join(names[:20]) if names else ''}; name the one to ask."
            )
        # A server may take names that it does not list; it refuses what it does not know.
        self.model = settings.model or names[0]
        limit = models.get(self.model, {}).get("max_model_len")
        self.max_tokens = limit if isinstance(limit, int) else None

    def reader(self, labels: LabelTokens, prompts: Sequence[Sequence[int]]) -> LabelReader:
        """Find out how the server gives labels' log-probabilities.

        Args:
            labels: whose they are.
            prompts: token ids of some prompts to find out with.

        Raises:
            ServerError: it does not answer.
            ValueError: it gives no log-probabilities; says what it answers to each form.
        """
        reasons: list[str] = []
        for form in (NAMED, BIASED, *TOP):
            reader = LabelReader(self, labels, form)
            try:
                found = reader.found(prompts)
                if form.has_all and (missing := reader.missing(found)):
                    reasons.append(f"{form.name}: the answer lacks {missing}")
                elif form is BIASED and not self._agrees(found, labels, prompts):
                    reasons.append(f"{form.name}: not seen to leave the labels' differences alone")
                else:
                    logger.info("%s has %s and is asked by %s.", self.url, self.model, form.name)
                    return reader
            except (RefusedError, BadAnswerError) as error:
                reasons.append(f"{form.name}: {error}")
        said = "\n".join(f"  {reason}" for reason in reasons)
        raise ValueError(
            f"llm_http_url: {self.url} gives no log-probabilities of the labels. Serve "
            f"the model with vLLM or llama.cpp. To each form it answered:\n{said}"
        )

    def _agrees(
        self, found: Sequence[Found], labels: LabelTokens, prompts: Sequence[Sequence[int]]
    ) -> bool:
        """Whether labels differ as much as among the plain most probable tokens, as far as seen."""
        for form in TOP:
            try:
                plain = LabelReader(self, labels, form).found(prompts)
            except (RefusedError, BadAnswerError):
                continue
            shifts = [
                [one[label] - other[label] for label in one.keys() & other.keys()]
                for one, other in zip(found, plain, strict=True)
            ]
            compared = [max(row) - min(row) for row in shifts if len(row) > 1]
            return bool(compared) and max(compared) < TOLERANCE
        return False

    def ask(self, prompt: Sequence[int], fields: dict[str, Any]) -> dict[str, Any]:
        """The answer to one prompt, behind which one token is generated."""
        base = {"model": self.model, "prompt": list(prompt), "max_tokens": 1, "temperature": 1.0}
        return self._client.ask("/completions", base | fields)


class LabelReader:
    """Reads the labels' log-probabilities in one form.

    Args:
        server: is asked.
        labels: in the order of the candidates.
        form: in which it is asked.
    """

    def __init__(self, server: LabelServer, labels: LabelTokens, form: Form) -> None:
        self.server, self.labels, self.form = server, labels, form

    def found(self, prompts: Sequence[Sequence[int]], n_labels: int | None = None) -> list[Found]:
        """The log-probabilities that the server gives of the first labels, by token id.

        Args:
            prompts: token ids of each; as many are asked at a time as ``llm_http_concurrency``.
            n_labels: how many labels; all if left out.
        """
        fields = self.form.fields(self.labels.token_ids[:n_labels])

        def one(prompt: Sequence[int]) -> Found:
            answer = self.server.ask(prompt, fields)
            return label_log_probabilities(answer, self.labels, len(prompt))

        with ThreadPoolExecutor(self.server.settings.concurrency) as threads:
            return list(threads.map(one, prompts))

    def missing(self, found: Sequence[Found]) -> str:
        """Labels that one of some answers lacks, in words; empty if none does."""
        wanted = self.labels.token_ids
        return self._named([own for row in found for own in wanted if own not in row])

    def log_probabilities(self, prompts: Sequence[Sequence[int]], n_candidates: int) -> Tensor:
        """Log-probabilities of the labels behind prompts, up to a constant of each prompt.

        Args:
            prompts: token ids of each, B.
            n_candidates: K, whose labels are read.

        Returns:
            float32 ``[B, K]``.

        Raises:
            MissingLabelsError: an answer lacks labels.
            ServerError: an answer fails, see :class:`Client`.
        """
        wanted = self.labels.token_ids[:n_candidates]
        rows = self.found(prompts, n_candidates)
        for place, row in enumerate(rows):
            if lacking := [token_id for token_id in wanted if token_id not in row]:
                raise MissingLabelsError(
                    f"llm_http_url: the server's answer lacks {self._named(lacking)}; it has been "
                    f"asked by {self.form.name}. Use a server that takes logprob_token_ids (vLLM), "
                    "let it give more log-probabilities (vLLM: --max-logprobs=128), or rank fewer "
                    "candidates (rerank_candidates).",
                    place,
                )
        return torch.tensor([[row[token_id] for token_id in wanted] for row in rows])  # [B, K]

    def _named(self, token_ids: Sequence[int]) -> str:
        distinct = list(dict.fromkeys(token_ids))
        named = [f"{self.labels.text(token_id)!r} ({token_id})" for token_id in distinct[:SHOWN]]
        more = f" and {len(distinct) - SHOWN} more" if len(distinct) > SHOWN else ""
        return f"the labels {', '.join(named)}{more}" if named else ""
