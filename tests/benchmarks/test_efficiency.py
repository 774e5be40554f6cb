"""The efficiency benchmark with a tiny model: titles of exact lengths, and runs that go on."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from xml.etree import ElementTree

import pytest
from helpers import ROOT
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def efficiency():
    """The script as a module; benchmarks/ is no package."""
    spec = importlib.util.spec_from_file_location(
        "efficiency", ROOT / "benchmarks" / "efficiency.py"
    )
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))  # as for a script that is run
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture
def run(efficiency, tiny_llama, tmp_path):
    """Runs the command with the tiny model and returns what it has written as JSON."""
    pytest.importorskip("matplotlib", reason="benchmarks/requirements.txt is not installed")

    def run_command(*arguments: str) -> dict:
        efficiency.main(["--out", str(tmp_path), "--llm", str(tiny_llama), *arguments])
        return json.loads((tmp_path / "efficiency.json").read_text())

    return run_command


@pytest.mark.parametrize("length", [2, 5, 11])
def test_titles_have_exactly_so_many_tokens(efficiency, tiny_llama, length):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    titles = efficiency.made_up_titles(tokenizer, length, 40, random.Random(1))
    assert len(set(titles)) == 40
    for title in titles:
        assert len(tokenizer(f" {title}").input_ids) == length
    assert titles == efficiency.made_up_titles(tokenizer, length, 40, random.Random(1))


def test_too_few_words_for_the_titles_is_an_error(efficiency, tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    with pytest.raises(ValueError, match="of 4000 titles of 1 tokens"):
        efficiency.made_up_titles(tokenizer, 1, 4000, random.Random(1))


def test_the_command_measures_writes_and_goes_on(run, tmp_path, capsys):
    first = run("--lengths", "4", "--rounds", "2")
    row = first["lengths"]["4"]
    assert [len(row[key]) for key in ("verbalizer_s", "generate_s")] == [2, 2]
    assert min(row["verbalizer_s"] + row["generate_s"]) > 0
    assert (row["new_tokens"], row["prompt_tokens"] > 40 * 4) == (80, True)
    assert row["ratio"] == pytest.approx(row["generate_median_s"] / row["verbalizer_median_s"])

    both = run("--lengths", "3", "4", "--rounds", "2")
    assert both["lengths"]["4"] == row
    assert set(both["lengths"]) == {"3", "4"}
    table = (tmp_path / "efficiency.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| 3", "| 4"]
    assert table in capsys.readouterr().out
    assert ElementTree.parse(tmp_path / "efficiency.svg").getroot().tag.endswith("svg")
    for name in ("json", "md", "svg"):
        assert str(tmp_path) not in (tmp_path / f"efficiency.{name}").read_text()


def test_times_of_other_conditions_are_not_mixed(run):
    first = run("--lengths", "3", "--rounds", "1")
    with pytest.raises(ValueError, match=r"rounds.*--overwrite"):
        run("--lengths", "3", "4", "--rounds", "2")
    again = run("--lengths", "3", "--rounds", "2", "--overwrite")
    assert again["lengths"]["3"] != first["lengths"]["3"]


def test_the_text_is_forced_to_its_full_length(efficiency, run, monkeypatch):
    written = []
    write = efficiency.Generating.write

    def noting(self, prompts, max_new_tokens, n_lines):
        decoder = self.model.get_decoder()
        steps = []
        hook = decoder.register_forward_hook(lambda *_: steps.append(1))
        texts = write(self, prompts, max_new_tokens, n_lines)
        hook.remove()
        written.append((max_new_tokens, len(steps)))
        return texts

    monkeypatch.setattr(efficiency.Generating, "write", noting)
    run("--lengths", "3", "--rounds", "1")
    assert written == [([efficiency.WARM_UP_TOKENS], efficiency.WARM_UP_TOKENS), ([60], 60)]


@pytest.mark.parametrize("wrong", [["--lengths", "0"], ["--rounds", "0"]])
def test_options_out_of_range(efficiency, tmp_path, wrong, capsys):
    with pytest.raises(SystemExit):
        efficiency.main(["--out", str(tmp_path), *wrong])
    assert wrong[0] in capsys.readouterr().err
