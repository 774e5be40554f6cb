"""The README's table of keys, the property file and the code name the same keys and defaults."""

from __future__ import annotations

import re

import pytest
import yaml
from helpers import ROOT
from recbole.utils.argument_list import evaluation_arguments, training_arguments

from recbole_llamarec.integration.known import properties_file
from recbole_llamarec.settings import llamarec_keys

FILE = properties_file("model", "LlamaRec")
DEFAULTS = yaml.safe_load(FILE.read_text())
README = (ROOT / "README.md").read_text()
# `key`, `default` and meaning; a default has no backtick in it
ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| (.+?) \|$", re.MULTILINE)
TYPES = {
    int: ("int", "float"),
    float: ("float",),
    bool: ("bool",),
    str: ("str", "auto"),
    list: ("list",),
    dict: ("dict",),
    type(None): ("~",),
}


def table() -> dict[str, str]:
    """Defaults in the README's table, as they stand there."""
    section = README.split("\n## Keys\n")[1].split("\n## ")[0]
    rows = ROW.findall(section)
    assert len(rows) == len({key for key, *_ in rows})  # none twice
    assert len(rows) == len(re.findall(r"^\| `", section, re.MULTILINE))  # none in another form
    return {key: default for key, default, _ in rows}


def test_readme_and_property_file_name_the_same_keys():
    assert list(table()) == list(DEFAULTS)  # in the same order, too


def test_the_code_reads_every_key_and_no_other():
    """What is not LlamaRec's is the ranker's part of RecBole's own training and evaluation keys."""
    assert set(llamarec_keys()) < set(table())
    assert set(table()) - set(llamarec_keys()) < {*training_arguments, *evaluation_arguments}


@pytest.mark.parametrize("key", DEFAULTS)
def test_the_readmes_default_is_the_property_files(key):
    assert yaml.safe_load(table()[key]) == DEFAULTS[key]


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_key_has_a_type_that_its_default_is_of_and_a_meaning(key):
    """Of each key's lines up to the next key: ``key: default  # (type) Meaning.``"""
    lines = re.search(rf"^{key}:.*\n(?:[ #].*\n)*", FILE.read_text(), re.MULTILINE)[0]
    kind, meaning = re.search(r"# \(([^)]+)\) (\S.+)", lines).groups()
    default = DEFAULTS[key]
    if key == "learning_rate":  # YAML 1.1 takes 1e-4 for a text; RecBole converts it
        default = float(default)
    assert any(name in kind for name in TYPES[type(default)])
    assert len(meaning) > len("Rank.")
