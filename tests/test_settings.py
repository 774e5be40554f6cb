from __future__ import annotations

import ast
import inspect
import itertools

import pytest
import yaml
from helpers import ROOT
from recbole.config import Config

from recbole_llamarec.ranking.protocol import ranker_class_of, register_ranker
from recbole_llamarec.recbole_keys import RUN_RULES
from recbole_llamarec.removed_keys import REMOVED
from recbole_llamarec.settings import (
    LlamaRecSettings,
    all_keys,
    llamarec_keys,
    report_unknown_keys,
)
from recbole_llamarec.settings_checks import CHECKS

PROPERTIES = ROOT / "properties"
PROFILES = sorted(file.name for file in PROPERTIES.glob("*.yaml"))
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OLD_INSTRUCTION = (
    "Given user history in chronological order, rank all items of the candidate pool, the most "
    "likely next item first. Write one title a line, as it stands in the pool, without its index "
    "letter."
)


class Values(dict):
    """A config of LlamaRec's defaults: missing keys read as None, as in RecBole."""

    def __getitem__(self, key):
        return self.get(key)


def defaults(*profiles: str, **changes) -> Values:
    """The property file's values, then those of profiles, then changes.

    The language model is one on the hub, which is not checked before it is loaded.
    """
    values = Values(eval_args={"mode": {"valid": "full", "test": "full"}})
    for file in ("model/LlamaRec.yaml", *profiles):
        values.update(yaml.safe_load((PROPERTIES / file).read_text(encoding="utf-8")))
    if values["llm_name_or_path"] == "embedded":
        values["llm_name_or_path"] = "org/a-model-on-the-hub"
    return Values(values | changes)


def settings_of(*profiles: str, **changes) -> LlamaRecSettings:
    return LlamaRecSettings.from_config(defaults(*profiles, **changes))


def errors_of(**changes) -> list[str]:
    with pytest.raises(ValueError) as error:
        settings_of(**changes)
    head, *lines = str(error.value).splitlines()
    assert head == "LlamaRec cannot start:" and all(line.startswith("- ") for line in lines)
    return lines


def test_the_defaults_are_the_papers_where_they_do_not_cost_hours():
    settings = settings_of()
    assert settings.ranking_method == "verbalizer" and settings.has_ranker
    assert settings.train_loss == "label" and settings.rerank_candidates == 20
    assert settings.verbalizer_labels is None and settings.evidence_items == 0
    assert (settings.lora.r, settings.lora.alpha, settings.lora.dropout) == (8, 32, 0.05)
    assert settings.lora.target_modules == ("q_proj", "v_proj")
    assert (settings.prompt_max_history, settings.prompt_max_title_tokens) == (10, 32)
    assert settings.retriever == "LRURec" and settings.retriever_config == {}
    assert settings.lora_adapter == "auto"


def test_keys_that_a_config_does_not_contain_take_their_defaults():
    assert LlamaRecSettings.from_config(Values(ranking_method="none")) == LlamaRecSettings(
        ranking_method="none"
    )


def test_nothing_is_wrong_where_nothing_is_given_but_a_language_model():
    assert settings_of() == LlamaRecSettings.from_config(
        Values(llm_name_or_path="org/a-model-on-the-hub")
    )


def test_lists_become_tuples_and_a_missing_mapping_is_empty():
    settings = settings_of(verbalizer_labels=list(LETTERS), scorers=["popularity"])
    assert settings.verbalizer_labels == tuple(LETTERS) and settings.scorers == ("popularity",)
    assert settings_of(retriever_config={"epochs": 3}).retriever_config == {"epochs": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rerank_candidates": 1}, ["rerank_candidates", "1", "at least 2"]),
        ({"rerank_candidates": "20"}, ["rerank_candidates", "'20'"]),
        ({"rerank_candidates": True}, ["rerank_candidates"]),
        ({"rerank_candidates": 53}, ["verbalizer_labels"]),
        ({"rerank_candidates": None}, ["rerank_candidates: None"]),
        ({"verbalizer_labels": ["A", "B"]}, ["rerank_candidates: 20", "verbalizer_labels", "2"]),
        ({"verbalizer_labels": ["A", "A"]}, ["verbalizer_labels", "distinct"]),
        ({"verbalizer_labels": []}, ["verbalizer_labels"]),
        ({"rerank_mask_seen": "yes"}, ["rerank_mask_seen", "True, False or window"]),
        ({"rerank_mask_seen": 1}, ["rerank_mask_seen"]),
        ({"rerank_fusion": -1}, ["rerank_fusion: -1", "auto", "at least 0"]),
        ({"rerank_fusion": "fitted"}, ["rerank_fusion: 'fitted'"]),
        ({"rerank_fusion": float("nan")}, ["rerank_fusion: nan"]),
        ({"item_text_missing": "keep"}, ["item_text_missing", "drop or fallback"]),
        ({"item_text_format": "{"}, ["item_text_format"]),
        ({"item_text_format": ""}, ["item_text_format"]),
        ({"item_text_fallback": "Item {id}"}, ["item_text_fallback", "{token}"]),
        ({"exact_chronology": "no"}, ["exact_chronology"]),
        ({"retriever_config": [1]}, ["retriever_config", "mapping"]),
        ({"prompt_text": "{history} {candidates} {user}"}, ["prompt_text", "user"]),
        ({"prompt_text": "{history}"}, ["prompt_text", "candidates"]),
        (
            {"prompt_text": r"History: {history}\nNext: {candidates} ("},
            [r"prompt_text: 'History: {history}\\nNext: ", r"""--prompt_text="'…\n…'"."""],
        ),
        ({"likelihood_heading": r"Films:\n"}, ["likelihood_heading", "a backslash and an n"]),
        ({"prompt_text": 3}, ["prompt_text: 3"]),
        ({"prompt_history_item": "{nr} {title}"}, ["prompt_history_item", "nr"]),
        ({"prompt_response": "the"}, ["prompt_response"]),
        ({"llm_dtype": "int3"}, ["llm_dtype", "int3"]),
        ({"llm_name_or_path": "/no/such/place"}, ["llm_name_or_path", "/no/such/place"]),
        ({"llm_name_or_path": "./none.gguf"}, ["llm_name_or_path", "./none.gguf"]),
        ({"lora_r": 0}, ["lora_r"]),
        ({"lora_dropout": 1.0}, ["lora_dropout"]),
        ({"train_max_samples": -1}, ["train_max_samples"]),
        ({"llm_batch_tokens": 0}, ["llm_batch_tokens"]),
        ({"save_every_minutes": 0}, ["save_every_minutes: 0", "above 0"]),
        ({"resume": 3}, ["resume: 3"]),
        ({"scorers": "popularity"}, ["scorers: 'popularity'", "list"]),
        (
            {"valid_metric": "MRR@10", "metrics": ["NDCG"], "topk": [10]},
            ["valid_metric", "NDCG@10"],
        ),
        ({"epochs": -1}, ["epochs: -1"]),
        ({"learner": "lion"}, ["learner: 'lion'", "adamw"]),
        ({"learning_rate": 0}, ["learning_rate: 0"]),
        ({"learning_rate": "fast"}, ["learning_rate: 'fast'"]),
        ({"clip_grad_norm": 1.0}, ["clip_grad_norm: 1.0", "mapping"]),
        ({"evidence_items": -1}, ["evidence_items: -1"]),
        ({"evidence_window": 0}, ["evidence_window: 0"]),
        ({"evidence_items": 5, "rerank_fusion": None}, ["evidence_items: 5", "auto", "None"]),
        ({"evidence_items": 5, "rerank_fusion": 0.5}, ["evidence_items: 5", "auto", "0.5"]),
        ({"scorers": ["own"], "rerank_fusion": 0.5}, ["scorers: ['own']", "auto", "0.5"]),
        (
            {"train_candidates": "retrieved"},
            ["train_candidates: retrieved needs train_evidence", "above 0, as to 0.7"],
        ),
        (
            {"train_loss": "titles", "ranking_method": "likelihood", "train_evidence": 0.5},
            ["train_evidence: 0.5 teaches", "set train_evidence to 0, or train_loss to label"],
        ),
        (
            {"train_loss": "titles", "ranking_method": "likelihood", "train_binding_steps": 3},
            ["train_binding_steps: 3 teaches"],
        ),
        (
            {"train_candidates": "retriever", "train_candidates_from": 10},
            ["train_candidates_from: 10", "rerank_candidates, 20"],
        ),
        (
            {"train_candidates": "retriever", "train_candidates_from": 10, "train_pool": 11},
            ["train_candidates_from: 10", "at least train_pool, 11."],
        ),
        (
            {"retriever_config": "{learning_rate: 0.001}"},
            ["retriever_config: ", "mapping", "--retriever_config=\"{'learning_rate': 0.001}\"."],
        ),
        ({"clip_grad_norm": "{max_norm: 5.0}"}, ["--clip_grad_norm=\"{'max_norm': 5.0}\"."]),
        ({"scorers": "[popularity]"}, ["--scorers=\"['popularity']\"."]),
        (
            {"prompt_candidate_item": "{title}"},
            ["prompt_candidate_item is '{title}'", "lacks the placeholder {label}; add it"],
        ),
        ({"train_pool": 21}, ["train_pool: 21", "at most rerank_candidates, 20"]),
        ({"train_pool": 1}, ["train_pool: 1", "2"]),
        ({"ranking_method": "letters"}, ["ranking_method: 'letters'", "verbalizer", "none"]),
        ({"ranking_method": None}, ["ranking_method: None"]),
        ({"train_loss": "titles"}, ["train_loss", "next_token", "ranking_method: likelihood"]),
        (
            {"ranking_method": "likelihood", "train_loss": "next_token"},
            ["train_loss", "titles", "ranking_method: verbalizer"],
        ),
        ({"train_loss": "hinge"}, ["train_loss: 'hinge'", "label"]),
        ({"likelihood_temperature": 0}, ["likelihood_temperature", "above 0"]),
        ({"eval_args": {"mode": {"valid": "uni100", "test": "full"}}}, ["eval_args", "full"]),
    ],
)
def test_wrong_values_name_key_value_and_remedy(changes, words):
    (line,) = errors_of(**changes)
    for word in words:
        assert word in line


def test_all_errors_are_reported_together_also_of_keys_that_contradict_each_other():
    lines = errors_of(
        rerank_candidates=60, lora_r=0, lora_alpha=0, llm_dtype="x", rerank_order="shuffle",
        train_loss="titles", evidence_items=3, rerank_fusion=None, prompt_text="{history}",
    )  # fmt: skip
    keys = ("verbalizer_labels", "lora_r", "lora_alpha", "llm_dtype", "rerank_order", "train_loss")
    for key in (*keys, "evidence_items", "prompt_text"):
        assert len([line for line in lines if line.startswith(f"- {key}")]) == 1
    assert len(lines) == len(keys) + 2


def test_a_wrong_key_is_not_compared_with_others():
    assert len(errors_of(rerank_candidates="60", verbalizer_labels=["A", "B"])) == 1


def test_checks_compare_keys_that_exist():
    known = {stated.name for stated in all_keys()} | {"llm", *RUN_RULES}
    for check in CHECKS:
        assert inspect.signature(check).parameters.keys() <= known


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("evidence_use", "prompt"),
        ("evidence_followers", 10),
        ("generate_instruction", "Rank them."),
        ("rerank_order", "shuffle"),
        ("rerank_permutations", 5),
        ("rerank_label_prior_rows", 100),
        ("lora_adapter", "shipped"),
        ("train_candidates", "mixed"),
        ("train_loss", "ranknet"),
        ("train_loss", "evidence"),
        ("ranking_method", "generate"),
    ],
)
def test_what_was_removed_is_named_with_what_to_do(key, value, monkeypatch):
    monkeypatch.setattr("recbole_llamarec.ranking.protocol._registered", {})  # no "generate"
    (line,) = errors_of(**{key: value})
    assert line.startswith(f"- {key}: {value!r} has been removed: ")
    assert any(word in line for word in ("Remove the key", "set it to", "Set it to"))


def test_a_removed_value_may_be_too_long_to_be_shown():
    (line,) = errors_of(rerank_permutations=10**5000)
    assert line.startswith("- rerank_permutations: a int that is too long to be shown has been")


def test_a_removed_value_names_all_that_there_are():
    (line,) = errors_of(train_candidates="mixed")
    assert line.endswith("has been removed: set it to random, popular, retriever or retrieved.")


def test_a_pool_in_training_is_what_the_retrievers_order_must_hold():
    given = {"train_candidates": "retriever", "train_candidates_from": 10, "train_pool": 10}
    assert settings_of(**given).train_pool == 10


def test_old_defaults_of_removed_keys_pass_so_that_older_checkpoints_can_be_read():
    old = {
        "evidence_use": "fusion",
        "evidence_followers": 20,
        "generate_instruction": OLD_INSTRUCTION,
        "rerank_order": "retriever",
        "rerank_permutations": 1,
        "rerank_label_prior_rows": 0,
    }
    assert set(old) == set(REMOVED) - set(llamarec_keys())
    assert settings_of(**old) == settings_of()
    assert report_unknown_keys(old, known=[]) == list(old)  # for a warning


def test_without_a_ranker_neither_its_loss_nor_its_model_nor_its_labels_are_checked():
    settings = settings_of(
        ranking_method="none",
        llm_name_or_path="/no/such/place",
        train_loss="titles",
        rerank_candidates=60,
        rerank_fusion=None,
    )
    assert not settings.has_ranker and not settings.has_scorers


def test_scorers_can_rank_without_a_language_model():
    assert settings_of(ranking_method="none", evidence_items=5).has_scorers
    assert settings_of(ranking_method="none", scorers=["popularity"]).has_scorers


def test_a_weight_or_none_is_for_the_language_model_alone():
    assert settings_of(rerank_fusion=0.5).rerank_fusion == 0.5
    assert settings_of(rerank_fusion=None).rerank_fusion is None


def test_likelihood_ranks_more_candidates_than_there_are_letters():
    assert settings_of("likelihood.yaml", rerank_candidates=60).rerank_candidates == 60


def test_a_registered_ranker_brings_its_name_and_its_losses():
    class Toy:
        losses = {"hinge": None}
        build = encode = scores = None  # settings ask for the losses alone

    register_ranker("toy_of_test_settings", Toy)
    assert ranker_class_of("toy_of_test_settings") is Toy
    method = {"ranking_method": "toy_of_test_settings"}
    assert settings_of(**method, train_loss="hinge", rerank_candidates=60).train_loss == "hinge"
    (line,) = errors_of(**method, train_loss="label")
    assert "hinge" in line and "verbalizer" in line


# --- profiles --------------------------------------------------------------------------------

PAPER = {
    "ranking_method": "verbalizer",
    "train_loss": "next_token",
    "train_candidates": "random",
    "prompt_max_history": 20,
    "prompt_max_title_tokens": 32,
    "rerank_candidates": 20,
    "rerank_fusion": None,
    "rerank_mask_seen": "window",
    "evidence_items": 0,
    "verbalizer_labels": None,
}


WITH = {  # options that a profile needs for what it says
    "readout.yaml": ' --item_text_format="{movie_title}"',
    "small-model-retrieved.yaml": " --lora_adapter=saved/LlamaRec-….adapter",
}


def test_the_profiles_are_these():
    names = ("all", "evidence", "likelihood", "llama-2-7b-qlora", "paper")
    small = ("readout", "small-model-retrieved", "small-model")
    assert [f"{name}.yaml" for name in names + small] == PROFILES


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_says_what_it_is_and_how_it_is_run(profile):
    text = (PROPERTIES / profile).read_text(encoding="utf-8")
    head = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    assert 3 <= len(head) <= 6
    command = "python run_recbole.py --model=LlamaRec --dataset=ml-100k --config_files="
    assert f"#   {command}properties/{profile}{WITH.get(profile, '')}" in head


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_known_keys_and_valid_values(profile):
    given = yaml.safe_load((PROPERTIES / profile).read_text(encoding="utf-8"))
    assert set(given) <= {stated.name for stated in all_keys()}
    settings_of(profile, llm_load_in_4bit=False)  # bitsandbytes need not be installed


@pytest.mark.parametrize("file", ["model/LlamaRec.yaml", *PROFILES])
def test_recbole_reads_the_values_as_they_are(file):
    """It evaluates every text of a property file as Python where that is possible."""
    from recbole.config import Config

    values = yaml.safe_load((PROPERTIES / file).read_text(encoding="utf-8"))
    assert Config._convert_config_dict(None, dict(values)) == values


@pytest.mark.parametrize("profile", ["paper.yaml", "llama-2-7b-qlora.yaml"])
def test_the_papers_ranker_is_that_of_the_official_code(profile):
    settings = settings_of(profile, llm_load_in_4bit=False)
    assert {key: getattr(settings, key) for key in PAPER} == PAPER
    assert defaults(profile)["epochs"] == 1
    assert settings.prompt.instruction == settings_of().prompt.instruction
    assert settings.prompt.render(["Heat (1995)", "Up (2009)"], ["Alien (1979)", "Jaws"], "AB") == (
        f"### Instruction:\n{settings.prompt.instruction}\n\n"
        "### Input:\nUser history: (1) Heat (1995) \n (2) Up (2009); \n "
        "Candidate pool: (A) Alien (1979) \n (B) Jaws\n\n"
        "### Response:\n"
    )
    assert settings.prompt.response == "{label}"


def test_the_7b_profile_is_the_papers_and_tunes_on_every_prefix():
    paper, large = (
        yaml.safe_load((PROPERTIES / name).read_text(encoding="utf-8"))
        for name in ("paper.yaml", "llama-2-7b-qlora.yaml")
    )
    assert large | paper == large
    assert large["train_max_samples"] is None and large["llm_load_in_4bit"] is True
    assert large["llm_name_or_path"] == "meta-llama/Llama-2-7b-hf"


def test_a_readout_shows_candidates_without_labels():
    settings = settings_of("readout.yaml")
    prompt = settings.prompt.render(["Heat", "Up"], ["Alien", "Jaws"], "AB")
    assert prompt == "History: Heat | Up |\nNext: Alien | Jaws |"
    assert (settings.ranking_method, settings.train_candidates) == ("readout", "retrieved")


def test_a_small_model_sees_the_letter_behind_its_title_as_it_is_to_answer():
    settings = settings_of("small-model.yaml")
    prompt = settings.prompt.render(["Heat", "Up"], ["Alien", "Jaws"], "AB")
    assert prompt == "History: Heat |Up\nCandidates: Alien (A) |Jaws (B)\nNext: ("
    assert settings.prompt.response == "{label}"
    assert (settings.train_binding_steps, settings.train_pool) == (30, 10)
    second = settings_of("small-model-retrieved.yaml")
    assert second.prompt == settings.prompt  # so that it can go on from the first one's adapter
    assert second.lora == settings.lora
    assert (second.train_candidates, second.train_evidence) == ("retrieved", 0.7)


@pytest.mark.parametrize(
    ("profile", "method", "evidence", "epochs"),
    [
        ("likelihood.yaml", "likelihood", 0, 0),
        ("evidence.yaml", "none", 5, 1),
        ("all.yaml", "likelihood", 5, 0),
    ],
)
def test_the_other_profiles_choose_the_scorers(profile, method, evidence, epochs):
    settings = settings_of(profile)
    assert (settings.ranking_method, settings.evidence_items) == (method, evidence)
    assert settings.rerank_fusion == "auto" and defaults(profile)["epochs"] == epochs


def test_each_trial_of_the_hyper_parameter_file_is_valid():
    lines = (PROPERTIES / "hyper" / "llamarec.test").read_text().splitlines()
    space = {key: ast.literal_eval(text) for key, _, text in map(str.split, lines)}
    assert set(space) <= set(llamarec_keys())
    for values in itertools.product(*space.values()):
        settings_of(**dict(zip(space, values, strict=True)))


# --- misspelt keys ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("lora_rank", "lora_r"),
        ("rerank_candidate", "rerank_candidates"),
        ("retreiver", "retriever"),
        ("llm_name_or_pth", "llm_name_or_path"),
        ("prompt_maximum_history", "prompt_max_history"),
        ("train_max_sample", "train_max_samples"),
        ("save_minutes", "save_every_minutes"),
    ],
)
def test_misspelt_keys_name_the_nearest(key, nearest):
    with pytest.raises(ValueError, match=f"{key}.*'{nearest}'"):
        report_unknown_keys([key], known=["epochs"])


def test_keys_of_recbole_and_others_pass():
    assert report_unknown_keys(["epochs", "lora_r"], known=["epochs"]) == []
    assert report_unknown_keys(["my_note"], known=["epochs"]) == ["my_note"]


@pytest.mark.parametrize(
    "key, value",
    [
        *(("metrics", ["Hit"]), ("topk", [1]), ("eval_args", {"mode": "full"}), ("seed", 3)),
        *(("data_path", "x"), ("checkpoint_dir", "y"), ("MAX_ITEM_LIST_LENGTH", 5)),
        *(("USER_ID_FIELD", "u"), ("load_col", None), ("model", "SASRec"), ("nproc", 2)),
    ],
)
def test_keys_of_the_whole_run_are_refused_inside_retriever_config(tiny_run, key, value):
    own = {**tiny_run["retriever_config"], key: value}
    with pytest.raises(ValueError, match=f"retriever_config: {key}: .* belongs to the whole run"):
        Config(config_dict={**tiny_run, "retriever_config": own})


def test_the_retriever_may_be_validated_by_another_metric_that_is_computed(tiny_run):
    for metric, is_right in (("Recall@5", True), ("Recall@7", False), ("Hit@5", False)):
        own = {**tiny_run["retriever_config"], "valid_metric": metric}
        if is_right:
            Config(config_dict={**tiny_run, "retriever_config": own})
            continue
        with pytest.raises(ValueError, match="retriever_config: valid_metric: .* is not computed"):
            Config(config_dict={**tiny_run, "retriever_config": own})
