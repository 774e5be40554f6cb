"""How a YAML key is stated: once, as a dataclass field with its default, its rule and its help.

``settings.py`` reads the fields to check a run's configuration; ``generate_keys.py`` makes
``properties/model/LlamaRec.yaml`` and ``docs/keys.md`` from them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

LARGEST = 2**31 - 1  # of whole numbers: beyond it nothing that a key counts makes sense


@dataclass(frozen=True)
class Rule:
    """Which values a key may have.

    Attributes:
        kind: the type, as YAML comments name it.
        allowed: the values, in words that follow "must be".
        accepts: whether a value is one of them.
    """

    kind: str
    allowed: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """A YAML key as it is stated.

    Attributes:
        name: the key.
        default: its value where the user gives none.
        rule: which values it may have.
        help: one or more sentences.
    """

    name: str
    default: Any
    rule: Rule
    help: str

    def error(self, value: Any) -> str | None:
        """What is wrong with a value: the key, the value and what is allowed; or ``None``."""
        if self.rule.accepts(value):
            return None
        return f"{self.name}: {value!r} must be {self.rule.allowed}."


def key(default: Any, rule: Rule, help: str) -> Any:
    """A dataclass field that is a YAML key.

    Args:
        default: its value where the user gives none; each object gets a copy of a list or dict.
        rule: which values it may have.
        help: one or more sentences: meaning, unit, and what special values do.
    """
    metadata = {"default": default, "rule": rule, "help": help}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def keys_of(kind: type, prefix: str = "") -> list[Key]:
    """The keys that a dataclass states.

    Args:
        kind: the dataclass; fields that were not made by :func:`key` are left out.
        prefix: what stands before each field's name in YAML.
    """
    return [
        Key(prefix + stated.name, **stated.metadata)
        for stated in fields(kind)
        if "rule" in stated.metadata
    ]


def check_fields(settings: Any, prefix: str) -> None:
    """Check every field of a frozen settings object by its rule, for its ``__post_init__``.

    Raises:
        ValueError: names every wrong key, the value found, and what is allowed.
    """
    errors = [
        error
        for stated in keys_of(type(settings), prefix)
        if (error := stated.error(getattr(settings, stated.name.removeprefix(prefix))))
    ]
    if errors:
        raise ValueError("\n".join(errors))


def whole(at_least: int, at_most: int = LARGEST) -> Rule:
    """A whole number; True and False are none."""
    upper = "" if at_most == LARGEST else f" and at most {at_most}"
    return Rule(
        "int",
        f"a whole number of at least {at_least}{upper}",
        lambda value: type(value) is int and at_least <= value <= at_most,
    )


def number(
    above: float | None = None, at_least: float | None = None, below: float | None = None
) -> Rule:
    """A finite number within bounds."""
    bounds = [
        f"{words} {bound:g}"
        for words, bound in (("above", above), ("of at least", at_least), ("below", below))
        if bound is not None
    ]

    def accepts(value: Any) -> bool:
        return (
            type(value) in (int, float)
            and math.isfinite(value)
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
        )

    return Rule("float", f"a number {' and '.join(bounds)}".strip(), accepts)


def one_of(*values: Any) -> Rule:
    """One of some values, of exactly their types."""
    listed = ", ".join(map(str, values[:-1])) + f" or {values[-1]}"
    kind = "bool or str" if any(isinstance(value, bool) for value in values) else "str"
    return Rule(
        kind,
        listed,
        lambda value: any(type(value) is type(word) and value == word for word in values),
    )


def optional(rule: Rule) -> Rule:
    """What ``rule`` allows, or nothing."""
    return Rule(
        f"{rule.kind} or ~",
        f"{rule.allowed}, or nothing (~)",
        lambda value: value is None or rule.accepts(value),
    )


def either(word: str, rule: Rule) -> Rule:
    """A word, or what ``rule`` allows."""
    return Rule(
        f"{word} or {rule.kind}",
        f"{word}, or {rule.allowed}",
        lambda value: (isinstance(value, str) and value == word) or rule.accepts(value),
    )


def list_of(rule: Rule, distinct: bool = False) -> Rule:
    """A list, not empty, of what ``rule`` allows."""
    return Rule(
        f"list of {rule.kind}",
        f"a list of {'distinct values, ' if distinct else ''}each {rule.allowed}",
        lambda value: (
            isinstance(value, list | tuple)
            and len(value) > 0
            and all(rule.accepts(element) for element in value)
            and (not distinct or len(set(value)) == len(value))
        ),
    )


TEXT = Rule(
    "str",
    "a text (in quotes where it looks like a number), not empty and without U+0000",
    lambda value: isinstance(value, str) and value.strip() != "" and "\0" not in value,
)
SWITCH = Rule("bool", "True or False", lambda value: isinstance(value, bool))
MAPPING = Rule(
    "dict",
    "a mapping of keys to values",
    lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
)
