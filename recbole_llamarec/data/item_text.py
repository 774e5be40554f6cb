"""Item text: what a person would call an item, built from RecBole's fields by a format string."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from string import Formatter

from recbole_llamarec.keys import shown

EMPTY_BRACKETS = re.compile(r"\(\s*\)|\[\s*\]|\{\s*\}")


@functools.cache  # it is asked for once an item
def format_fields(item_text_format: str) -> tuple[str, ...]:
    """Names of the fields that a format string reads, in the order of their first use.

    Raises:
        ValueError: the format string is malformed or reads no field.
    """
    try:
        parsed = list(Formatter().parse(item_text_format))
    except ValueError as error:
        raise ValueError(
            f"item_text_format: {item_text_format!r} is not a format string ({error}); write field "
            "names in braces, such as '{movie_title} ({release_year})'."
        ) from error
    fields = tuple(dict.fromkeys(name for _, name, _, _ in parsed if name is not None))
    is_plain = not any(spec or conversion for _, _, spec, conversion in parsed)
    if not fields or not is_plain or not all(name.isidentifier() for name in fields):
        raise ValueError(
            f"item_text_format: {item_text_format!r} must name at least one item field in braces, "
            "each by its plain name, such as '{movie_title} ({release_year})'."
        )
    return fields


def check_fallback(fallback: str) -> None:
    """Check the text of items without one.

    Args:
        fallback: may have ``{token}`` in it, for the item's token.

    Raises:
        ValueError: there is something else in braces.
    """
    try:
        parts = [part for _, *part in Formatter().parse(fallback)]
        is_right = all(part in (["token", "", None], [None, None, None]) for part in parts)
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError(
            f"item_text_fallback: {shown(fallback)} may have {{token}} alone in braces, which "
            "stands for the item's id; write a literal brace twice."
        )


def format_item_text(item_text_format: str, values: Mapping[str, str]) -> str:
    """The text of one item, or ``""`` where it has none.

    The first field of the format names the item: where it is empty, the item has no text. Any
    other field may be empty; brackets that it leaves empty are removed.

    Args:
        item_text_format: text with field names in braces.
        values: the item's value of every field of the format; ``""`` is missing.
    """
    name = format_fields(item_text_format)[0]
    if not values[name].strip():
        return ""
    text = EMPTY_BRACKETS.sub(" ", item_text_format.format_map(values))
    return " ".join(text.split())


def item_texts(
    item_text_format: str,
    columns: Mapping[str, Sequence[str]],
    tokens: Sequence[str],
    fallback: str | None,
) -> list[str]:
    """The text of every item.

    Args:
        item_text_format: text with field names in braces.
        columns: for every field of the format, its value for each item, ``""`` where missing.
        tokens: the items' tokens (their ids in the atomic file), for the fallback.
        fallback: text of an item that has none, with ``{token}`` for its token; ``None`` leaves it
            empty.

    Returns:
        list of ``len(tokens)`` texts.
    """
    fields = format_fields(item_text_format)
    rows = zip(*(columns[field] for field in fields), strict=True)
    texts = [
        format_item_text(item_text_format, dict(zip(fields, row, strict=True))) for row in rows
    ]
    if fallback is None:
        return texts
    return [text or fallback.format(token=token) for text, token in zip(texts, tokens, strict=True)]
