"""How a YAML key is stated: once, as a dataclass field with its default, its rule and its help.

``settings.py`` reads the fields to check a run's configuration; ``generate_keys.py`` makes
``properties/model/LlamaRec.yaml`` and ``docs/keys.md`` from them.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from recbole_llamarec.command_line_values import remedy

LARGEST = 2**31 - 1  # of whole numbers: beyond it nothing that a key counts makes sense
MOST_SHOWN = 200  # characters of a value in a message
NO_TEXT = re.compile("[\0\ud800-\udfff]")


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
        """What is wrong with a value, see :func:`value_error`."""
        return value_error(self.name, value, self.rule)


def value_error(name: str, value: Any, rule: Rule) -> str | None:
    """What is wrong with a value: the key, the value and what is allowed; or ``None``.

    Args:
        name: the key, as a message names it.
        value: of the key.
        rule: which values it may have.
    """
    if rule.accepts(value):
        return None
    takes_several = "dict" in rule.kind or "list" in rule.kind
    how = remedy(name, value) if takes_several else ""
    return f"{name}: {shown(value)} must be {rule.allowed}.{how}"


def shown(value: Any) -> str:
    """A value as messages show it: whatever it is, and shortened where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of a number with more than 4,300 digits, or too deep
        names = f" with the keys {', '.join(map(str, value))}" if type(value) is dict else ""
        return f"a {type(value).__name__}{names} that is too long to be shown"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


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


def keys_of(kind: type, prefix: str = "") -> tuple[Key, ...]:
    """The keys that a dataclass states.

    Args:
        kind: the dataclass; fields that were not made by :func:`key` are left out.
        prefix: what stands before each field's name in YAML.
    """
    hashable: Any = kind
    return _keys_of(hashable, prefix)


@cache
def _keys_of(kind: Any, prefix: str) -> tuple[Key, ...]:
    return tuple(
        Key(prefix + stated.name, **stated.metadata)
        for stated in fields(kind)
        if "rule" in stated.metadata
    )


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
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Rule:
    """A finite number within bounds; True and False are none."""
    limits = {"above": above, "of at least": at_least, "below": below, "at most": at_most}
    bounds = [f"{words} {bound:g}" for words, bound in limits.items() if bound is not None]

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and -sys.float_info.max <= value <= sys.float_info.max  # neither infinite nor NaN
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )

    allowed = " ".join(["a number", " and ".join(bounds)]) if bounds else "a finite number"
    return Rule("float", allowed, accepts)


def one_of(*values: Any) -> Rule:
    """One of some values, of exactly their types."""
    listed = " or ".join(filter(None, [", ".join(map(str, values[:-1])), str(values[-1])]))
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


def mapping_of(rules: Mapping[str, Rule], required: Sequence[str] = ()) -> Rule:
    """A mapping of names to what the rule of each name allows.

    Args:
        rules: by name; other names are wrong.
        required: names that must be there.
    """
    parts = "; ".join(f"{name}: {rule.allowed}" for name, rule in rules.items())
    needed = f", of which {', '.join(required)} must be there" if required else ""
    return Rule(
        "dict",
        f"a mapping ({parts}{needed})",
        lambda value: (
            MAPPING.accepts(value)
            and set(required) <= set(value) <= set(rules)
            and all(rules[name].accepts(held) for name, held in value.items())
        ),
    )


def mapping_to(rule: Rule) -> Rule:
    """A mapping of any names to what ``rule`` allows."""
    return Rule(
        "dict",
        f"a mapping of names to {rule.allowed}",
        lambda value: (
            MAPPING.accepts(value)
            and all(TEXT.accepts(name) and rule.accepts(held) for name, held in value.items())
        ),
    )


def any_of(*rules: Rule) -> Rule:
    """What one of some rules allows."""
    return Rule(
        " or ".join(rule.kind for rule in rules),
        ", or ".join(rule.allowed for rule in rules),
        lambda value: any(rule.accepts(value) for rule in rules),
    )


def is_text(value: Any) -> bool:
    """Whether a value is a text that every file, tokenizer and table can hold.

    U+0000 ends a text in C and marks the place of titles in prompts; a half of a surrogate pair
    is no character.
    """
    return isinstance(value, str) and NO_TEXT.search(value) is None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(is_text, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool) or is_text(value) or number().accepts(value)


WORDING = Rule(  # unlike TEXT it may be empty or blank
    "str", "a text (in quotes where it looks like a number), without U+0000", is_text
)
TEXT = Rule(
    "str",
    "a text (in quotes where it looks like a number), not empty and without U+0000",
    lambda value: is_text(value) and value.strip() != "",
)
NAME = Rule(
    "str",
    "a name: at most 100 letters, digits and _, not beginning with a digit",
    lambda value: isinstance(value, str) and value.isidentifier() and len(value) <= 100,
)
SWITCH = Rule("bool", "True or False", lambda value: isinstance(value, bool))
MAPPING = Rule(
    "dict",
    "a mapping of keys to values",
    lambda value: isinstance(value, Mapping) and all(map(is_text, value)),
)
PLAIN = Rule("any", "a plain value, whose numbers are finite and texts without U+0000", _is_plain)
