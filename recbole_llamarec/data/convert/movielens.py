"""MovieLens: the CSV files of ``ml-latest`` and its siblings, and the ``::`` files of ``ml-1m``."""

from __future__ import annotations

import re
from collections.abc import Callable

from recbole_llamarec.data.convert.raw_files import (
    Damage,
    Row,
    clean,
    csv_fields,
    identifier,
    interaction,
)

ITEM_HEAD = ("item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq")
RATING_COLUMNS = ("userid", "movieid", "rating", "timestamp")
MOVIE_COLUMNS = ("movieid", "title", "genres")
NO_GENRES = "(no genres listed)"

YEAR = re.compile(r"(.*\S)\s*\((\d{4})(?:[-–]\s*\d{0,4})?\)")
LAST_BRACKETS = re.compile(r"(.*\S)\s*\((?:[^()]|\([^()]*\))*\)")  # with brackets inside
ARTICLES = (
    *("The", "A", "An"),  # English
    *("Le", "La", "Les", "L'", "Un", "Une", "Des"),  # French
    *("Il", "Lo", "I", "Gli", "Uno", "Una"),  # Italian
    *("El", "Los", "Las"),  # Spanish
    *("Der", "Die", "Das", "Ein", "Eine"),  # German
    *("De", "Het", "Een", "Den", "Det", "En", "Ett", "O", "Os"),  # Dutch, Nordic, Portuguese
)
ARTICLE = re.compile(rf"(.*\S), ({'|'.join(ARTICLES)})")


def split_title(text: str) -> tuple[str, str]:
    """A film's title as people say it, and its year.

    ``Godfather, The (1972)`` is ``The Godfather``, ``1972``: an article that stands behind goes to
    the front, and brackets behind the title, which hold alternative titles, are dropped.

    Returns:
        The title, empty only if ``text`` is blank, and the year, empty if there is none.
    """
    title, year = clean(text), ""
    if match := YEAR.fullmatch(title):
        title, year = match[1], match[2]
    while match := LAST_BRACKETS.fullmatch(title):
        title = match[1]
    if match := ARTICLE.fullmatch(title):
        title = f"{match[2]}{'' if match[2].endswith(chr(39)) else ' '}{match[1]}"
    return title or clean(text), year


def header_check(columns: tuple[str, ...]) -> Callable[[str], None]:
    """A check of a CSV file's first line; letters' case does not matter."""

    def check(line: str) -> None:
        found = [name.strip().casefold() for name in line.removeprefix("\ufeff").split(",")]
        if found != list(columns):
            raise Damage(f"the first line must name the columns {', '.join(columns)}")

    return check


def film(item: str, text: str, genres: str) -> Row:
    """A row of the ``.item`` file."""
    classes = "" if genres == NO_GENRES else clean(genres.replace("|", " "))
    return (identifier(item, "item"), *split_title(text), classes)


def csv_rating(line: str) -> Row:
    return interaction(*csv_fields(line, 4))


def csv_film(line: str) -> Row:
    return film(*csv_fields(line, 3))


def colon_fields(line: str, count: int) -> list[str]:
    fields = line.split("::")
    if len(fields) != count:
        raise Damage(f"not {count} columns")
    return fields


def colon_rating(line: str) -> Row:
    return interaction(*colon_fields(line, 4))


def colon_film(line: str) -> Row:
    return film(*colon_fields(line, 3))
