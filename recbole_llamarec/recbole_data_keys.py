"""The rules of RecBole's keys of a data set and of its split; see :mod:`recbole_keys`.

What fits a data set can be known when it is read alone: ``data/dataset.py`` then names the keys.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any

from recbole_llamarec.keys import (
    MAPPING,
    PLAIN,
    SWITCH,
    TEXT,
    Rule,
    any_of,
    either,
    is_text,
    list_of,
    mapping_of,
    mapping_to,
    number,
    one_of,
    optional,
    whole,
)
from recbole_llamarec.path_rules import PATH

INTERVAL = re.compile(r"[\[(]([^,;]+),([^,;]+)[\])]")


def _are_intervals(value: Any) -> bool:
    """As RecBole reads them: the command line gives the text [5,10] as a list."""
    try:
        text = str(value)
    except ValueError:  # a number of more than 4,300 digits
        return False
    return isinstance(value, str | list | tuple) and all(map(_is_interval, text.split(";")))


def _is_interval(text: str) -> bool:
    if not (match := INTERVAL.fullmatch(text.strip())):
        return False
    try:
        left, right = map(float, match.groups())
    except ValueError:
        return False
    return left <= right  # never of NaN


def _is_encoding(value: Any) -> bool:
    try:
        return is_text(value) and bool(codecs.lookup(value))
    except LookupError:
        return False


def _is_ratio_list(value: Any) -> bool:
    ratio = number(at_least=0)
    return (
        isinstance(value, list)
        and len(value) == 3  # of training, validation and test
        and all(map(ratio.accepts, value))
        and value[0] > 0
    )


def _is_split(value: Any) -> bool:
    if not MAPPING.accepts(value) or len(value) != 1:
        return False
    ((kind, held),) = value.items()
    if kind == "LS":
        return held in ("valid_and_test", "valid_only", "test_only")
    return kind in ("RS", "TS") and _is_ratio_list(held)


def _is_mode(value: Any) -> bool:
    if isinstance(value, Mapping):
        return set(value) <= {"valid", "test"} and all(
            isinstance(mode, str) and _is_mode(mode) for mode in value.values()
        )
    return isinstance(value, str) and bool(
        value in ("full", "labeled") or re.fullmatch(r"(uni|pop)[1-9]\d{0,8}", value)
    )


def _is_group(value: Any) -> bool:
    is_none = value is None or (isinstance(value, str) and value.lower() == "none")
    return is_none or value == "user"  # RecBole compares this word as it is written


INTERVALS = Rule(
    "str",
    "intervals such as '[5,inf)' or '[2,4];(9,20)', the lower end first",
    _are_intervals,
)
SPLIT = Rule(
    "dict",
    "LS: valid_and_test, valid_only or test_only; or RS: three ratios of at least 0, the first "
    "above 0",
    _is_split,
)
EVALUATION = mapping_of(
    {
        "split": SPLIT,
        "group_by": Rule("str", "user or none", _is_group),
        "order": Rule("str", "TO: sequences stand by time", lambda value: value == "TO"),
        "mode": Rule("str", "full, labeled, uniN or popN, or these for valid and test", _is_mode),
    }
)
SEPARATOR = Rule(
    "str",
    "a text, not empty, without line breaks and U+0000",
    lambda value: is_text(value) and value != "" and not set("\n\r") & set(value),
)
COLUMNS = mapping_to(either("*", list_of(TEXT)))
NAMES = list_of(TEXT)

# The keys of a data set. What fits it can be known when it is read; see data/dataset.py.
DATA_RULES: dict[str, Rule] = {
    "field_separator": SEPARATOR,
    "seq_separator": SEPARATOR,
    **dict.fromkeys(("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "RATING_FIELD"), TEXT),
    **dict.fromkeys(("LABEL_FIELD", "NEG_PREFIX", "POSITION_FIELD", "LIST_SUFFIX"), TEXT),
    **dict.fromkeys(("ITEM_LIST_LENGTH_FIELD", "HEAD_ENTITY_ID_FIELD"), TEXT),
    **dict.fromkeys(("TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD"), TEXT),
    "seq_len": optional(mapping_to(whole(1))),
    "threshold": optional(
        Rule(
            "dict",
            "a mapping of one field to a number",
            lambda value: mapping_to(number()).accepts(value) and len(value) == 1,
        )
    ),
    "numerical_features": Rule(
        "list of str",
        "a list of texts",
        lambda value: isinstance(value, list) and all(map(TEXT.accepts, value)),
    ),
    **dict.fromkeys(("load_col", "unload_col", "unused_col"), optional(COLUMNS)),
    "additional_feat_suffix": optional(any_of(TEXT, NAMES)),
    "rm_dup_inter": optional(one_of("first", "last")),
    "val_interval": optional(mapping_to(any_of(INTERVALS, NAMES))),
    "filter_inter_by_user_or_item": SWITCH,
    "user_inter_num_interval": optional(INTERVALS),
    "item_inter_num_interval": optional(INTERVALS),
    "entity_kg_num_interval": optional(INTERVALS),
    "relation_kg_num_interval": optional(INTERVALS),
    "kg_reverse_r": SWITCH,
    **dict.fromkeys(("alias_of_user_id", "alias_of_item_id"), optional(NAMES)),
    **dict.fromkeys(("alias_of_entity_id", "alias_of_relation_id"), optional(NAMES)),
    "preload_weight": optional(mapping_to(TEXT)),
    "normalize_field": optional(NAMES),
    "normalize_all": optional(SWITCH),
    "discretization": optional(mapping_to(PLAIN)),
    "benchmark_filename": optional(
        Rule(
            "list of str",
            "a list of three names: of training, validation and test",
            lambda value: list_of(PATH).accepts(value) and len(value) == 3,
        )
    ),
    "encoding": optional(Rule("str", "a name of an encoding, such as utf-8", _is_encoding)),
    "MAX_ITEM_LIST_LENGTH": whole(1, 10_000),
    "eval_args": EVALUATION,
}
