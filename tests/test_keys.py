"""Each key is stated once; the property file and the table of keys are made from that."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass

import pytest
import yaml
from helpers import ROOT

from recbole_llamarec.generate_keys import as_yaml, keys_markdown, model_yaml, sections
from recbole_llamarec.keys import (
    MAPPING,
    SWITCH,
    TEXT,
    Key,
    check_fields,
    either,
    key,
    keys_of,
    list_of,
    number,
    one_of,
    optional,
    whole,
)
from recbole_llamarec.settings import GROUPS, all_keys, llamarec_keys
from recbole_llamarec.training_keys import TrainingKeys

PACKAGE = ROOT / "recbole_llamarec"
PROPERTIES = (ROOT / "properties" / "model" / "LlamaRec.yaml").read_text(encoding="utf-8")
TABLE = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
MADE_BY = "run python -m recbole_llamarec.generate_keys"
# RecBole makes the data set before the model; tuning of keys names the retriever's checkpoint; a
# retriever has a configuration of its own.
WITHOUT_SETTINGS = {
    *("data/dataset.py", "integration/caches.py", "hyper_tuning.py"),
    "retrieval/file_retriever.py",
}
TYPES = {
    int: ("int", "float"),
    float: ("float",),
    bool: ("bool",),
    str: ("str", "auto"),
    tuple: ("list",),
    dict: ("dict",),
    type(None): ("~",),
}


def sources() -> dict[str, ast.Module]:
    return {
        file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"))
    }


def ids(stated: Key) -> str:
    return stated.name


def test_the_property_file_is_what_the_keys_give():
    assert model_yaml() == PROPERTIES, MADE_BY


def test_the_table_of_keys_is_what_the_keys_give():
    assert keys_markdown() == TABLE, MADE_BY


def test_every_key_stands_under_one_heading_of_both_files():
    names = [stated.name for _, keys in sections() for stated in keys]
    assert sorted(names) == sorted(stated.name for stated in all_keys())
    assert list(yaml.safe_load(PROPERTIES)) == names
    assert re.findall(r"^\| `(\w+)` \|", TABLE, re.MULTILINE) == names


@pytest.mark.parametrize("stated", all_keys(), ids=ids)
def test_the_property_files_default_is_the_codes(stated):
    default = list(stated.default) if isinstance(stated.default, tuple) else stated.default
    found = yaml.safe_load(PROPERTIES)[stated.name]
    assert found == default and type(found) is type(default)


@pytest.mark.parametrize("stated", all_keys(), ids=ids)
def test_every_default_keeps_its_rule_and_has_a_type_and_a_meaning(stated):
    assert stated.error(stated.default) is None
    assert any(name in stated.rule.kind for name in TYPES[type(stated.default)])
    assert len(stated.help) > len("Rank.") and stated.help.endswith(".")


def test_every_key_is_stated_by_one_field_of_the_code():
    prefixes = {kind.__name__: prefix for prefix, kind in GROUPS.items()}
    names = Counter(
        prefixes.get(holder.name, "") + field.target.id
        for tree in sources().values()
        for holder in ast.walk(tree)
        if isinstance(holder, ast.ClassDef)
        for field in holder.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(field.value, ast.Call)
        and isinstance(field.value.func, ast.Name)
        and field.value.func.id == "key"
    )
    assert names == Counter(stated.name for stated in all_keys())
    assert set(names.values()) == {1}


def test_values_are_read_from_the_settings_and_not_from_recboles_config():
    ours = set(llamarec_keys())
    readers = {
        (name, node.slice.value)
        for name, tree in sources().items()
        if name not in WITHOUT_SETTINGS
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value).endswith("config")
        and isinstance(node.slice, ast.Constant)
        and node.slice.value in ours
    }
    assert readers == set()


def test_what_is_not_llamarecs_are_recboles_training_and_evaluation_keys():
    from recbole.utils.argument_list import evaluation_arguments, training_arguments

    names = {stated.name for stated in keys_of(TrainingKeys)}
    assert names <= {*training_arguments, *evaluation_arguments}
    assert names.isdisjoint(llamarec_keys())
    assert names | set(llamarec_keys()) == {stated.name for stated in all_keys()}


def test_lines_of_the_property_file_are_no_longer_than_110_columns_but_for_prompts():
    long = [line for line in PROPERTIES.splitlines() if len(line) > 110]
    assert all(line.startswith(("prompt_text", "prompt_instruction")) for line in long)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 7, 1e-4, 1e-5, 2.5e20, 0.0, "label", "NDCG@10", " ", "none"),
        *("yes", "1e-4", "12", "null", "it's", "a: b", "{title}", "# x", "two\nlines ", "…"),
        *(["a", "b c"], [0, 1], {"max_norm": 1.0}, {}),
    ],
    ids=repr,
)
def test_a_default_is_read_back_from_yaml_as_it_is(value):
    found = yaml.safe_load(f"key: {as_yaml(value)}  # comment")["key"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (whole(1), [1, 5], [0, True, 1.0, "1", None, 2**31]),
        (whole(0, 3), [0, 3], [4]),
        (number(above=0), [1, 0.5], [0, True, "1", float("inf"), float("nan"), None]),
        (number(at_least=0, below=1), [0, 0.5], [1, -0.1]),
        (one_of("a", "b"), ["a"], ["c", None, 1, ["a"]]),
        (one_of(True, False, "window"), [True, False, "window"], [1, 0, "True", None]),
        (optional(whole(1)), [None, 1], [0, "~"]),
        (either("auto", number(at_least=0)), ["auto", 0, 1.5], ["none", -1, None]),
        (list_of(TEXT), [["a"], ("a", "a")], [[], "a", [1], None, [""]]),
        (list_of(TEXT, distinct=True), [["a", "b"]], [["a", "a"]]),
        (TEXT, ["a"], ["", " ", 1, None, "\0"]),
        (SWITCH, [True, False], [1, 0, "True", None]),
        (MAPPING, [{}, {"a": 1}], [[], {1: 2}, None, "a"]),
    ],
)
def test_a_rule_accepts_what_it_says(rule, right, wrong):
    assert [value for value in right if not rule.accepts(value)] == []
    assert [value for value in wrong if rule.accepts(value)] == []


def test_an_error_names_the_key_the_value_and_what_is_allowed():
    stated = Key("lora_r", 8, whole(1), "Rank.")
    assert stated.error(0) == "lora_r: 0 must be a whole number of at least 1."
    assert stated.error(4) is None


def test_a_group_checks_its_fields_and_names_all_that_are_wrong():
    @dataclass(frozen=True)
    class Group:
        size: int = key(1, whole(1), "Size.")
        names: dict = key({"a": 1}, MAPPING, "Names.")
        free: int = 3

        def __post_init__(self):
            check_fields(self, "group_")

    assert [stated.name for stated in keys_of(Group, "group_")] == ["group_size", "group_names"]
    assert Group().names == {"a": 1} and Group().names is not Group().names
    with pytest.raises(ValueError) as error:
        Group(size=0, names=[])
    first, second = str(error.value).splitlines()
    assert first.startswith("group_size: 0 ") and second.startswith("group_names: [] ")
