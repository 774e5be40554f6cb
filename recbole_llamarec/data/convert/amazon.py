"""Amazon reviews of 2014, 2018 and 2023: ratings or reviews, and metadata."""

from __future__ import annotations

import ast
import html
import warnings
from collections.abc import Iterator
from typing import Any

from recbole_llamarec.data.convert.raw_files import (
    Damage,
    FileReport,
    Row,
    clean,
    csv_fields,
    identifier,
    interaction,
    json_object,
)

ITEM_HEAD = ("item_id:token", "title:token_seq", "brand:token", "categories:token_seq")
MAX_LITERAL = 1_000_000
SCRIPT_MARKS = ("getTime", "<script", "<span", "var aPageStart")  # pages taken for titles in 2018


def rating_2014(line: str) -> Row:
    """``user,item,rating,timestamp`` without a head line."""
    user, item, rating, timestamp = csv_fields(line, 4)
    return interaction(user, item, rating, timestamp)


def rating_2018(line: str) -> Row:
    """``item,user,rating,timestamp`` without a head line."""
    item, user, rating, timestamp = csv_fields(line, 4)
    return interaction(user, item, rating, timestamp)


def review_2018(line: str) -> Row:
    """A review of 2018 as a JSON object."""
    review = json_object(line)
    keys = ("reviewerID", "asin", "overall", "unixReviewTime")
    user, item, rating, timestamp = (review.get(key, "") for key in keys)
    return interaction(user, item, rating, timestamp)


def review_2023(line: str) -> Row:
    """A review of 2023 as a JSON object; its time is in milliseconds."""
    review = json_object(line)
    keys = ("user_id", "parent_asin", "rating", "timestamp")
    user, item, rating, timestamp = (review.get(key, "") for key in keys)
    return interaction(user, item, rating, timestamp, divisor=1000)


def python_literal(line: str) -> dict:
    """The dictionary on one line of Python; only literals are read, nothing is run.

    Parsing takes hundreds of bytes of memory for each byte, so that long lines are refused.
    """
    if len(line) > MAX_LITERAL:
        raise Damage(f"longer than {MAX_LITERAL} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old metadata escapes slashes, which Python frowns on
            value = ast.literal_eval(line)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise Damage("not a Python literal") from None
    if not isinstance(value, dict):
        raise Damage("not a dictionary")
    return value


class Metadata:
    """Reads items; counts what is lost in them.

    Args:
        year: 2014, 2018 or 2023.
        report: of the metadata file.
    """

    def __init__(self, year: int, report: FileReport) -> None:
        self.read = python_literal if year == 2014 else json_object
        self.item_key = "parent_asin" if year == 2023 else "asin"
        self.brand_key = "store" if year == 2023 else "brand"
        self.category_key = "category" if year == 2018 else "categories"
        self.report = report

    def item(self, line: str) -> Row:
        """A row of the ``.item`` file."""
        values = self.read(line)
        return (
            identifier(values.get(self.item_key, ""), "item"),
            self._title(values.get("title")),
            text_of(values.get(self.brand_key)),
            text_of(" ".join(dict.fromkeys(texts_in(values.get(self.category_key))))),
        )

    def _title(self, value: Any) -> str:
        title = text_of(value)
        if any(mark in title for mark in SCRIPT_MARKS):
            self.report.note("titles that are parts of a web page, taken for missing")
            return ""
        return title


def text_of(value: Any) -> str:
    """A field as clean text; ``""`` where it is missing."""
    return clean(html.unescape(value)) if isinstance(value, str) else ""


def texts_in(value: Any) -> Iterator[str]:
    """The texts of a list, or of a list of lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from texts_in(part)
