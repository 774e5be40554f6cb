"""Wrong wordings name their key, and what is allowed."""

import pytest

from recbole_llamarec.keys import keys_of
from recbole_llamarec.ranking.prompt.template import PromptTemplate


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text", "{history}", "prompt_text is '{history}': it lacks the placeholder {candidates}"),
        ("text", "{history} {candidates} {user}", "unknown placeholder {user}"),
        ("text", "a {history} b {history} {candidates}", "has a placeholder twice"),
        ("text", "a b: {candidates} {history}", "{history} must stand before {candidates}"),
        ("text", "a b: {history}/{candidates}", "between {history} and the first title"),
        ("text", "{history} - {candidates}", "before the first title of {history}"),
        ("history_item", "{number:02d} {title}", "has a format or conversion"),
        ("history_item", "{title} ", "prompt_history_item is '{title} ': it must neither begin"),
        ("candidate_item", "{label}", "prompt_candidate_item is '{label}': it lacks"),
        ("candidate_item", "({label}) {title", "cannot be read"),
        ("response", "{}", "prompt_response is '{}': it has the unknown placeholder {}"),
        ("separator", "\n", "prompt_separator is '\\n': it must begin with a space"),
        ("instruction", "a\0b", "U+0000"),
        ("instruction", "Pick.", "prompt_instruction is 'Pick.', but prompt_text does not show it"),
    ],
)
def test_wrong_templates_name_their_key(field, value, message):
    settings = {"history_item": "{title}", "candidate_item": "{label}:{title}"} | {field: value}
    with pytest.raises(ValueError) as caught:
        PromptTemplate(**settings)
    assert message in str(caught.value)


def test_all_placeholder_errors_come_at_once():
    with pytest.raises(ValueError, match="(?s)prompt_history_item.*prompt_response"):
        PromptTemplate(history_item="x", response="y")


@pytest.mark.parametrize("value", [7, None, ["a"], True])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(ValueError, match="prompt_instruction: .* must be a text"):
        PromptTemplate(instruction=value)


def test_every_field_is_a_key_with_a_help():
    keys = {key.name: key for key in keys_of(PromptTemplate, "prompt_")}
    assert list(keys) == [f"prompt_{name}" for name in vars(PromptTemplate())]
    assert keys["prompt_separator"].default == " |"
    assert all(key.help.endswith(".") and key.rule.accepts(key.default) for key in keys.values())
