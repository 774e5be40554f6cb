"""Ways in which a file may be damaged: any file, a table, JSON. Each takes and gives its bytes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]
WORDS = ("seven", "nan", "NaN", "inf", "-1", "1e999", "", "1,5", "0x10", "１", "None", " 3", "1_0")
VALUES: tuple[Any, ...] = ("seven", None, True, [], {}, "0.5", float("nan"), float("inf"), [[1]])


# --- damages of any file --------------------------------------------------------------------------


def inserted(piece: bytes) -> Damage:
    """Insert bytes at a random place."""

    def insert(content: bytes, generator: random.Random) -> bytes:
        place = generator.randrange(len(content))
        return content[:place] + piece + content[place:]

    return insert


def with_lines(change: Callable[[list[bytes], int, random.Random], Sequence[bytes]]) -> Damage:
    """Change the lines of a file about a random one."""

    def changed(content: bytes, generator: random.Random) -> bytes:
        lines = content.splitlines(keepends=True)
        return b"".join(change(lines, generator.randrange(len(lines)), generator))

    return changed


TEXT: dict[str, Damage] = {
    "cut": lambda content, generator: content[: generator.randrange(len(content))],
    "empty": lambda content, generator: b"",
    "gzip or not": lambda content, generator: (
        gzip.decompress(content) if content.startswith(b"\x1f\x8b") else gzip.compress(content)[:-3]
    ),
    "bad UTF-8": inserted(b"\xff"),
    "byte order mark": lambda content, generator: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content, generator: content.decode("latin-1").encode("utf-16"),
    "U+0000": inserted(b"\0"),
    "random bytes": lambda content, generator: generator.randbytes(200),
    "line twice": with_lines(lambda lines, n, _: [*lines[: n + 1], *lines[n:]]),
    "two lines in one": with_lines(
        lambda lines, n, _: [*lines[:n], lines[n].rstrip(b"\n"), *lines[n + 1 :]]
    ),
    "line of noise": with_lines(
        lambda lines, n, generator: [*lines[:n], generator.randbytes(30) + b"\n", *lines[n:]]
    ),
    "empty line": with_lines(lambda lines, n, _: [*lines[:n], b"\n", *lines[n:]]),
}


# --- damages of tables ----------------------------------------------------------------------------


def with_rows(change: Callable[[list[list[str]], random.Random], None]) -> Damage:
    """Change the fields of a table."""

    def changed(content: bytes, generator: random.Random) -> bytes:
        rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
        change(rows, generator)
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="\n").writerows(rows)
        return out.getvalue().encode()

    return changed


def _another_field(rows: list[list[str]], generator: random.Random) -> None:
    """A word for a number, in any column but those of ids."""
    row, place = generator.choice(rows[1:]), generator.randrange(2, len(rows[0]))
    row[place] = generator.choice(WORDS)


def _another_metric(rows: list[list[str]], generator: random.Random) -> None:
    """A number for another one, in a rank or metric."""
    places = [n for n, name in enumerate(rows[0]) if name.startswith("rank:") or "@" in name]
    row, place = generator.choice(rows[1:]), generator.choice(places)
    if row[place]:
        row[place] = generator.choice(["0.123", "3.5", "999999999999999"])


def _swap_columns(rows: list[list[str]], generator: random.Random) -> None:
    one, other = generator.sample(range(len(rows[0])), 2)
    rows[0][one], rows[0][other] = rows[0][other], rows[0][one]


def _rename_column(rows: list[list[str]], generator: random.Random) -> None:
    place = generator.randrange(2, len(rows[0]))
    rows[0][place] = rows[0][place][1:]


def _column_twice(rows: list[list[str]], generator: random.Random) -> None:
    place = generator.randrange(len(rows[0]))
    for row in rows:
        row.append(row[place])


def _without_column(rows: list[list[str]], generator: random.Random) -> None:
    place = generator.randrange(len(rows[0]))
    for row in rows:
        del row[place]


CSV: dict[str, Damage] = {
    "word for a number": with_rows(_another_field),
    "another number": with_rows(_another_metric),
    "columns swapped": with_rows(_swap_columns),
    "column renamed": with_rows(_rename_column),
    "column twice": with_rows(_column_twice),
    "column missing": with_rows(_without_column),
    "row missing": with_rows(lambda rows, g: rows.pop(g.randrange(1, len(rows)))),
    "row too long": with_rows(lambda rows, g: g.choice(rows[1:]).append("1")),
    "row too short": with_rows(lambda rows, g: g.choice(rows[1:]).pop()),
    "rows in another order": with_rows(lambda rows, g: rows.append(rows.pop(1))),
}


def packed_damages(but: Sequence[str] = ()) -> dict[str, Damage]:
    """The same within a gzip file, without some."""

    def packed(damage: Damage) -> Damage:
        return lambda content, generator: gzip.compress(damage(gzip.decompress(content), generator))

    return {f"{name}, packed": packed(damage) for name, damage in CSV.items() if name not in but}


# --- damages of JSON ------------------------------------------------------------------------------


def with_value(change: Callable[[Any, random.Random], None]) -> Damage:
    """Change a value in a random line, or in the whole file where it is one value."""

    def changed(content: bytes, generator: random.Random) -> bytes:
        try:
            lines, end = [json.loads(content)], b""
            n, indent = 0, 1
        except ValueError:
            lines, end = [json.loads(line) for line in content.splitlines()], b"\n"
            n, indent = generator.randrange(len(lines)), None
        change(lines[n], generator)
        return b"".join(json.dumps(line, indent=indent).encode() + end for line in lines)

    return changed


def _containers(value: Any) -> list[Any]:
    """Every object and list of a value that is not empty."""
    if not isinstance(value, dict | list) or not value:
        return []
    parts = value.values() if isinstance(value, dict) else value
    return [value, *(inner for part in parts for inner in _containers(part))]


def _place(value: Any, generator: random.Random) -> tuple[Any, Any]:
    container = generator.choice(_containers(value))
    is_object = isinstance(container, dict)
    return container, generator.choice(list(container) if is_object else range(len(container)))


def _other_type(value: Any, generator: random.Random) -> None:
    container, key = _place(value, generator)
    container[key] = generator.choice(VALUES)


def _without_part(value: Any, generator: random.Random) -> None:
    container, key = _place(value, generator)
    del container[key]


def _renamed_part(value: Any, generator: random.Random) -> None:
    container, key = _place(value, generator)
    if isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)


JSON: dict[str, Damage] = {
    "value of another type": with_value(_other_type),
    "part missing": with_value(_without_part),
    "part renamed": with_value(_renamed_part),
}
