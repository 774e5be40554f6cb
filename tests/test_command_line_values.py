"""Mappings and lists as a command line takes them."""

from __future__ import annotations

import ast
import shlex

import pytest

from recbole_llamarec.command_line_values import remedy


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{learning_rate: 0.001}", {"learning_rate": 0.001}),
        ("{learning_rate: 1e-3, epochs:3}", {"learning_rate": 1e-3, "epochs": 3}),
        ("{a: true, b: null, c: False}", {"a": True, "b": None, "c": False}),
        ("{valid: own/a.tsv, test: '/b c.tsv'}", {"valid": "own/a.tsv", "test": "/b c.tsv"}),
        ("[evidence, popularity]", ["evidence", "popularity"]),
        ('{text: "it\'s"}', {"text": "it's"}),
        ("{p: {max_norm: 5.0}}", {"p": {"max_norm": 5.0}}),
    ],
)
def test_what_is_to_be_typed_arrives_as_it_is_meant(text, value):
    sentence = remedy("key_x", text)
    (typed,) = shlex.split(sentence.removeprefix(" On a command line, write ").removesuffix("."))
    name, _, written = typed.partition("=")
    assert (name, ast.literal_eval(written)) == ("--key_x", value)


def test_a_mapping_stands_between_double_quotes():
    assert remedy("retriever_config", "{learning_rate: 0.001}") == (
        " On a command line, write --retriever_config=\"{'learning_rate': 0.001}\"."
    )


@pytest.mark.parametrize("text", ["{a=1}", "[1, 2", "{: }"])
def test_of_what_is_not_understood_the_rule_is_told(text):
    assert remedy("key_x", text) == (
        " On a command line, write it as Python: quote its texts and names, and the whole."
    )


@pytest.mark.parametrize(
    ("name", "value"), [("x", "words"), ("x", 1.0), ("x", {"a": 1}), ("x: y", "{a: 1}"), ("x", "")]
)
def test_of_other_values_nothing_is_said(name, value):
    assert remedy(name, value) == ""
