"""Token ids of pieces of a text, as they are inside the whole.

A text is parted only in front of a space that follows a non-space: no token crosses that point,
neither with a GPT-2-style pre-tokeniser nor with SentencePiece BPE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = "x"  # pieces are encoded behind it: SentencePiece treats the start of a text specially


def encode_start(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text's beginning, with the tokens that the tokenizer puts before it.

    Raises:
        ValueError: the tokenizer appends a token to each text.
    """
    plain = tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(text).input_ids
    if ids[len(ids) - len(plain) :] != plain:
        raise ValueError(
            "The tokenizer appends a token to each text, but the labels are read behind the "
            "prompt's last one; load it with add_eos_token=False."
        )
    return ids


def encode_pieces(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> list[list[int]]:
    """The ids of texts as they are inside a longer one; each must begin at a cut point."""
    if not pieces:
        return []
    anchor = tokenizer(ANCHOR, add_special_tokens=False).input_ids
    texts = [ANCHOR + piece for piece in pieces]
    rows = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return [
        row[len(anchor) :]
        if row[: len(anchor)] == anchor
        else tokenizer(piece, add_special_tokens=False).input_ids  # not piecewise
        for row, piece in zip(rows, pieces, strict=True)
    ]
