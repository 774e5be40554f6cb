"""The verbalizer: one label token a candidate, its logit at the prompt's last position the score.

LlamaRec, Yue et al. 2023, arXiv 2311.02089, section 3.3.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.model.head import UNSCALED, LogitScaling, head_logits
from recbole_llamarec.ranking.prompt.template import PLACEHOLDERS, placeholder_error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = string.ascii_uppercase + string.ascii_lowercase
ADVICE = (
    "Choose other verbalizer_labels, or a prompt_response that adds nothing but the label, "
    "by default ' {label}' behind a prompt that ends in a word or punctuation."
)


def default_labels(n: int) -> tuple[str, ...]:
    """Return the labels of ``n`` candidates: A to Z, then a to z.

    Raises:
        ValueError: ``n`` is less than 2 or more than 52.
    """
    if not 2 <= n <= len(LETTERS):
        raise ValueError(
            f"verbalizer_labels is not set and rerank_candidates is {n}: the default labels A-Z, "
            f"a-z serve 2 to {len(LETTERS)}; set verbalizer_labels to {n} distinct labels of one "
            "token each, or rank another number of candidates."
        )
    return tuple(LETTERS[:n])


@dataclass(frozen=True)
class Verbalizer:
    """Reads the candidates' scores off the language model's head.

    Attributes:
        labels: Label of each candidate position.
        token_ids: Token id of each label, as it follows the prompt.
    """

    labels: tuple[str, ...]
    token_ids: tuple[int, ...]

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        labels: Sequence[str],
        prompt_text: str,
        response: str = " {label}",
    ) -> "Verbalizer":
        """Find the labels' token ids as what each adds to the tokens of a real prompt.

        A label encoded alone may give another token than behind the prompt, whose last character
        or the tokenizer's dummy space can change it; so both are encoded together.

        Args:
            tokenizer: Any tokenizer of transformers.
            labels: Two or more labels.
            prompt_text: The text of one prompt, as :meth:`PromptBuilder.text` returns it.
            response: What follows the prompt, with the placeholder ``{label}``.

        Raises:
            ValueError: A label does not add exactly one known token, or two add the same one.
        """
        error = placeholder_error("response", response, *PLACEHOLDERS["response"])
        if error or len(labels) < 2:
            raise ValueError(
                error or f"verbalizer_labels is {list(labels)}: there must be 2 or more labels."
            )

        def encode(texts: list[str]) -> list[list[int]]:
            return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids

        (prompt,) = encode([prompt_text])
        rows = encode([prompt_text + response.format(label=label) for label in labels])
        seen: dict[int, str] = {}
        for label, row in zip(labels, rows, strict=True):
            same = next((i for i, (a, b) in enumerate(zip(prompt, row, strict=False)) if a != b), 0)
            added = row[len(prompt) :]
            tokens = tokenizer.convert_ids_to_tokens(added)
            fault = ""
            if row[: len(prompt)] != prompt:
                tokens = tokenizer.convert_ids_to_tokens(row[same:])
                fault = "changes the prompt's own last tokens"
            elif len(added) != 1:
                fault = f"adds {len(added)} tokens, and must add one"
            elif added[0] == tokenizer.unk_token_id:
                fault = "is unknown to the tokenizer"
            elif added[0] in seen:
                fault = f"adds the same token as {seen[added[0]]!r}"
            if fault:
                raise ValueError(
                    f"verbalizer_labels: the label {label!r} with prompt_response {response!r} "
                    f"{fault}; it gave {tokens}. {ADVICE}"
                )
            seen[added[0]] = label
        return cls(tuple(labels), tuple(seen))

    def scores(
        self, hidden: Tensor, head: nn.Module, n_candidates: int, scaling: LogitScaling = UNSCALED
    ) -> Tensor:
        """Return the labels' logits, as :func:`head_logits` does.

        Args:
            hidden: ``[B, H]``, last hidden state at the prompt's last position.
            head: The model's output layer, ``H`` to the vocabulary, with or without a bias.
            n_candidates: K, the number of candidates.
            scaling: What :func:`logit_scaling` says of the model.

        Returns:
            ``[B, K]``, float32.

        Raises:
            ValueError: There are more candidates than labels.
        """
        if not 1 <= n_candidates <= len(self.token_ids):
            raise ValueError(
                f"There are {n_candidates} candidates and {len(self.token_ids)} "
                "verbalizer_labels: give as many labels as candidates."
            )
        rows = torch.tensor(self.token_ids[:n_candidates], device=hidden.device)  # [K]
        return head_logits(hidden, head, rows, scaling)
