"""An export is read by plain transformers and PEFT, without this package, and scores alike."""

from __future__ import annotations

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from recbole_llamarec.adapters.card import read_card
from recbole_llamarec.checksums import check_sums
from recbole_llamarec.export.__main__ import main
from recbole_llamarec.export.card import card_files
from recbole_llamarec.export.folder import require_own, write_folder
from recbole_llamarec.export.load import BaseModel, load_export
from recbole_llamarec.files import save_tensors
from recbole_llamarec.integration.checkpoints import load_checkpoint
from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.model.settings import LanguageModelSettings

COMMIT = "0" * 40
NAMES = ("recbole_llamarec", "recbole")  # what the reader does not have


@pytest.fixture(scope="module", params=["adapter", "merged"])
def folder(request, trained, tmp_path_factory) -> Path:
    """The finished run's export."""
    directory = tmp_path_factory.mktemp("export") / request.param
    options = ["--merged"] if request.param == "merged" else []
    main(
        [str(trained.checkpoint), f"--data-path={trained.data_path}", f"--to={directory}", *options]
    )
    return directory


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> dict[str, str]:
    """Environment of a process that cannot import this package."""
    hidden = tmp_path_factory.mktemp("hidden")
    for name in NAMES:
        (hidden / f"{name}.py").write_text(f"raise ImportError('there is no {name}')\n")
    return {**os.environ, "PYTHONPATH": str(hidden), "HF_HUB_OFFLINE": "1"}


def scores_by(folder: Path, environment: dict[str, str], history, candidates) -> dict[str, float]:
    """Log-probabilities by title, as ``rank.py`` prints them."""
    command = [sys.executable, "rank.py", "--history", *history, "--candidates", *candidates]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {title: float(score) for _, score, _, title in rows}


def test_the_script_of_the_folder_scores_as_we_do(folder, elsewhere, recommender, test_rows):
    _, histories, _ = test_rows
    history = max(histories, key=len)  # longer than a prompt shows
    pool = [f"i{n}" for n in range(20, 28)]
    expected = {item.text: item.score for item in recommender.rank(history, pool)}
    titles = [recommender.texts[item] for item in recommender.ids_of(history)]
    found = scores_by(folder, elsewhere, [*titles[:3], *history[3:]], pool)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-4)
    assert max(expected.values()) - min(expected.values()) > 1e-2  # not all alike


def checked(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
    """What ``rank.py --check`` says of a folder."""
    command = [sys.executable, "rank.py", "--check"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_folder_passes_its_own_check(folder, elsewhere, recommender):
    done = checked(folder, elsewhere)
    assert done.returncode == 0 and done.stdout.startswith("3 examples: ")
    examples = json.loads((folder / "llamarec.json").read_text(encoding="utf-8"))["examples"]
    assert [len(example["history"]) for example in examples] == [0, 2, 5]
    for example in examples:
        ranked = recommender.rank(example["history"], example["candidates"])
        scores = dict(zip(example["candidates"], example["log_probabilities"], strict=True))
        assert len(scores) == 8 and sum(map(math.exp, scores.values())) == pytest.approx(1)
        assert {item.item: item.score for item in ranked} == pytest.approx(scores, abs=1e-4)


def with_other_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*model.safetensors")
    save_file({name: 1.5 * t for name, t in load_file(file).items()}, file, {"format": "pt"})


def with_other_description(change):
    def damage(folder: Path) -> None:
        about = json.loads((folder / "llamarec.json").read_text(encoding="utf-8"))
        change(about)
        (folder / "llamarec.json").write_text(json.dumps(about), encoding="utf-8")

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (with_other_weights, "Example 3 differs by up to"),
        (
            with_other_description(lambda a: a["prompt"].update(candidate_item="{title} {label}")),
            "Example 1 differs by up to",
        ),
        (
            with_other_description(lambda a: a["prompt"].update(history_item="({number}) {title}")),
            "Example 2 differs by up to",
        ),
        (
            with_other_description(lambda a: a.update(max_prompt_tokens=9)),
            "Example 1 cannot be scored: The candidates need",
        ),
        (
            with_other_description(lambda a: a["examples"][1].update(log_probabilities=[0.0] * 8)),
            "Example 2 differs by up to",
        ),
    ],
)
def test_a_damaged_folder_is_told_apart(damage, words, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, copy := tmp_path / "copy")
    damage(copy)
    monkeypatch.setattr(sys, "argv", ["rank.py", "--check"])
    with pytest.raises(SystemExit, match=words):
        runpy.run_path(str(copy / "rank.py"), run_name="__main__")


def test_a_damaged_folder_fails_the_check(folder, elsewhere, tmp_path):
    shutil.copytree(folder, copy := tmp_path / "copy")
    with_other_weights(copy)
    done = checked(copy, elsewhere)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Example 3 differs by up to" in done.stderr and "Traceback" not in done.stderr


def test_a_base_of_the_hub_is_named_and_fetched_from_there(
    trained, tiny_llama, elsewhere, recommender, tmp_path
):
    """From the hub's cache, as it would lie there, without a network."""
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_llama, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(COMMIT)
    export = load_export(trained.checkpoint, trained.data_path, "float32")
    of_hub = BaseModel.of(LanguageModelSettings(name_or_path="org/tiny", revision="v1"))
    folder = tmp_path / "export"
    write_folder(replace(export, base=of_hub), folder, False, {})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "v1")
    assert not (folder / "base").exists()
    environment = {**elsewhere, "HF_HUB_CACHE": str(tmp_path / "hub")}
    pool = [f"i{n}" for n in range(20, 25)]
    expected = {item.text: item.score for item in recommender.rank(["i3"], pool)}
    assert scores_by(folder, environment, ["i3"], pool) == pytest.approx(expected, abs=1e-4)


def test_the_reader_has_nothing_of_ours(elsewhere, tmp_path):
    for name in NAMES:
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True)
        assert f"there is no {name}" in done.stderr


def test_a_folder_names_no_folder_of_this_machine(folder, trained, tiny_llama):
    check_sums(folder)
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert str(trained.checkpoint.parent).encode() not in content, file
        assert str(tiny_llama).encode() not in content, file


def test_an_export_says_all_that_a_prompt_needs(folder, recommender):
    about = json.loads((folder / "llamarec.json").read_text(encoding="utf-8"))
    tokens, titles = recommender.tokens.tolist(), recommender.prompts.titles
    assert about["items"] == dict(zip(tokens[1:], titles[1:], strict=True))
    assert about["labels"] == list("ABCDEFGH")
    assert (about["max_history"], about["weights"]) == (5, folder.name)
    assert about["fusion"]["weights"] == {"verbalizer": 1.0}
    assert (about["base_model"]["folder"] == "base") == (folder / "base").is_dir()
    assert about["base_model"]["name"].startswith("tiny-llama")


def test_an_export_is_replaced_by_one_of_the_other_form(folder, trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    other = ["--merged"] if folder.name == "adapter" else []
    main([str(trained.checkpoint), f"--data-path={trained.data_path}", f"--to={copy}", *other])
    assert (copy / "base").is_dir() == (copy / "adapter_config.json").is_file() == (not other)
    assert check_sums(copy) and [file.name for file in tmp_path.iterdir()] == ["copy"]
    modes = {file.stat().st_mode for file in copy.rglob("*") if file.is_file()}
    assert len(modes) == 1  # who may read one may read all


def test_nothing_but_an_export_is_replaced(folder, trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    require_own(copy)
    require_own(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    require_own(tmp_path / "empty")
    added = copy / "notes.txt"
    added.write_text("mine")
    with pytest.raises(FileExistsError, match=r"--to: .*'notes.txt' is not of the export"):
        require_own(copy)
    added.unlink()
    (copy / "rank.py").write_text("print('mine')")
    with pytest.raises(FileExistsError, match=r"rank.py is damaged"):
        require_own(copy)
    (copy / "llamarec.json").write_text("[]")
    with pytest.raises(FileExistsError, match="is of another program"):
        require_own(copy)
    for name in ("saved", "tiny.inter"):  # a folder and a file of somebody
        (tmp_path / "saved").mkdir(exist_ok=True)
        (tmp_path / "saved" / "tiny.inter").write_text("mine")
        target = tmp_path / "saved" if name == "saved" else tmp_path / "saved" / name
        with pytest.raises(SystemExit, match="--to: .* is not touched"):
            main([str(trained.checkpoint), f"--to={target}"])
    assert (tmp_path / "saved" / "tiny.inter").read_text() == "mine"


@pytest.mark.parametrize(
    ("method", "words"),
    [("likelihood", "'likelihood' gives candidates no labels"), ("none", "'none' gives")],
)
def test_what_reads_no_labels_is_refused_by_its_name(method, words, trained, tmp_path):
    checkpoint = load_checkpoint(trained.checkpoint)
    checkpoint["config"]["ranking_method"] = method
    save_tensors(checkpoint, tmp_path / "LlamaRec-1.pth")
    with pytest.raises(ValueError, match=f"ranking_method: {words}.*recbole_llamarec.serve"):
        load_export(tmp_path / "LlamaRec-1.pth", trained.data_path, "float32")


def test_a_model_on_a_server_is_refused(trained, tmp_path):
    checkpoint = load_checkpoint(trained.checkpoint)
    checkpoint["config"] |= {"llm_backend": "http", "llm_http_url": "http://127.0.0.1:9/v1"}
    checkpoint["config"] |= {"epochs": 0}
    save_tensors(checkpoint, tmp_path / "LlamaRec-1.pth")
    with pytest.raises(ValueError, match="llm_backend: http: a server has"):
        load_export(tmp_path / "LlamaRec-1.pth", trained.data_path, "float32")


def test_letters_with_scores_of_their_own_are_refused(trained, monkeypatch):
    class OwnScores(Letters):
        def scores(self, batch):
            return -super().scores(batch)

    monkeypatch.setitem(load_export.__globals__, "ranker_class_of", lambda _: OwnScores)
    with pytest.raises(ValueError, match="'verbalizer' has scores of its own"):
        load_export(trained.checkpoint, trained.data_path, "float32")


def test_a_checkpoint_without_an_adapter_is_refused(trained, tmp_path):
    checkpoint = load_checkpoint(trained.checkpoint)
    checkpoint["other_parameter"]["scorers"] = {}
    save_tensors(checkpoint, tmp_path / "LlamaRec-1.pth")
    with pytest.raises(ValueError, match="holds no adapter"):
        load_export(tmp_path / "LlamaRec-1.pth", trained.data_path, "float32")


def test_a_base_is_named_where_the_hub_has_its_weights(tiny_llama):
    def base(name: str, **others) -> BaseModel:
        return BaseModel.of(LanguageModelSettings(name_or_path=name, **others))

    of_hub = base("org/model", revision="main", load_in_4bit=True)
    assert (of_hub.name, of_hub.revision, of_hub.is_on_hub) == ("org/model", "main", True)
    assert of_hub.trained_as == "llm_load_in_4bit"
    assert not base("org/model", gguf_file="model.gguf").is_on_hub
    local, embedded = base(str(tiny_llama)), base("embedded")
    assert (local.name, local.hub_name, local.is_on_hub) == (tiny_llama.name, None, False)
    assert embedded.hub_name == "HuggingFaceTB/SmolLM2-135M-Instruct" and not embedded.is_on_hub
    assert base("models/x.gguf").name == "x.gguf"


def test_a_model_card_has_data_metrics_command_and_licence(folder, trained):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "other" and card.data.base_model is None  # of a local model
    assert card.data.library_name == ("peft" if folder.name == "adapter" else "transformers")
    of_run = read_card(trained.checkpoint.with_suffix(".adapter"))
    for text in ("data: tiny, ", of_run.training_part, "tuned on 16 samples", "command: `python"):
        assert text in card.text
    final = next(line for line in card.text.splitlines() if line.startswith("| final: "))
    assert f"{trained.result['test_result']['ndcg@10']:.4f}" in final
    kept = read_card(folder)  # beside an adapter alone
    assert (kept and kept.training_part) == (
        of_run.training_part if folder.name == "adapter" else None
    )


def test_a_model_card_names_the_hubs_model_and_says_what_it_does_not_know(trained, tmp_path):
    export = load_export(trained.checkpoint, trained.data_path, "float32")
    embedded = replace(
        export, base=BaseModel.of(LanguageModelSettings(load_in_8bit=True)), dtype="bfloat16"
    )
    page = card_files(embedded, tmp_path / "LlamaRec-1.pth", True, None)["README.md"]
    _, header, text = page.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "apache-2.0",
        "tags": ["recommendation", "llamarec"],
    }
    assert text.count("ot known") == 2 and "llm_load_in_8bit" in text
    page = card_files(embedded, tmp_path / "LlamaRec-1.pth", False, "cc-by-4.0")["README.md"]
    assert "license: cc-by-4.0" in page and "cc-by-4.0, as who exported it says" in page


def test_prompts_are_those_of_the_evaluation(trained, recommender, test_rows, tmp_path):
    file = tmp_path / "prompts.jsonl"
    main([str(trained.checkpoint), f"--data-path={trained.data_path}", f"--prompts={file}"])
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    users, histories, orders = test_rows
    assert [line["user"] for line in lines] == users
    tokenizer = recommender.prompts.tokenizer
    for line, history, order in zip(lines, histories, orders, strict=True):
        assert set(line["candidates"]) == set(order[:8])
        text = recommender.prompt(history, line["candidates"])
        assert line["prompt_token_ids"] == tokenizer(text).input_ids
        labels = [tokenizer.decode([token]) for token in line["label_token_ids"]]
        assert labels == list("ABCDEFGH")
        assert line["retriever"] == sorted(line["retriever"], reverse=True)
        assert sum(map(math.exp, line["retriever"])) == pytest.approx(1, abs=1e-4)
    with pytest.raises(SystemExit, match="--prompts: .* is there already"):
        main([str(trained.checkpoint), f"--prompts={file}"])


def test_a_command_that_writes_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["LlamaRec-1.pth"])
    assert "give --to, --prompts or both" in capsys.readouterr().err


def test_what_the_model_needs_and_is_not_installed_is_said(monkeypatch):
    def fail(*_):
        raise ImportError("llm_load_in_4bit needs bitsandbytes")

    monkeypatch.setattr("recbole_llamarec.export.__main__.load_export", fail)
    with pytest.raises(SystemExit, match="llm_load_in_4bit needs bitsandbytes"):
        main(["LlamaRec-1.pth", "--prompts=prompts.jsonl"])
