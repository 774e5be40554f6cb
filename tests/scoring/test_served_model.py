"""A language model on a server as a scorer, and a whole run with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from helpers import titles
from recbole.utils import init_seed
from runs import files, language_model_of, pools_of, run_of
from stand_in_server import StandIn, TinyModel, serving

from recbole_llamarec.ranking.model.loading import LanguageModelSettings
from recbole_llamarec.ranking.served.parity import parity
from recbole_llamarec.ranking.served.server import MissingLabelsError
from recbole_llamarec.ranking.served.settings import HttpSettings
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.scoring.scorer import Rows, ScorerParts
from recbole_llamarec.scoring.served_model import ServedModel
from recbole_llamarec.settings import LlamaRecSettings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """The environment's own key is sent to no stand-in."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def batch() -> tuple[Rows, torch.Tensor]:
    histories, pools, _ = pools_of(4)
    return Rows(histories, torch.zeros(4, dtype=torch.int64)), torch.tensor(pools)


def served_model_of(folder: Path | str, url: str, **http) -> ServedModel:
    """A scorer of 7 of 50 titles."""
    llm = LanguageModelSettings(name_or_path=str(folder), dtype="float32", backend="http")
    keys = LlamaRecSettings(
        llm=llm, llm_http=HttpSettings(url=url, **({"timeout": 20} | http)), rerank_candidates=7
    )
    return ServedModel(ScorerParts(keys, None, ["", *titles(50)], 51, CPU, 1))


def test_its_scores_are_the_local_models(tiny_llama, batch, monkeypatch):
    expected = language_model_of(tiny_llama).scores(*batch)
    for name in ("language_model", "served_model"):
        place = f"recbole_llamarec.scoring.{name}.load_language_model"
        monkeypatch.setattr(place, None)  # no weights are loaded
    with serving(TinyModel(tiny_llama)) as server:
        scorer = served_model_of(tiny_llama, server.url)
        assert torch.allclose(scorer.scores(*batch), expected, atol=1e-4)
    assert scorer.state() == {} == scorer.adapter_weights()


def test_missing_labels_name_the_row(tiny_llama, batch):
    with serving(TinyModel(tiny_llama, "openai")) as server:
        scorer = served_model_of(tiny_llama, server.url)
        with pytest.raises(MissingLabelsError, match=r"verbalizer: Row \d: .*lacks the labels"):
            scorer.scores(*batch)


def test_a_model_that_is_the_same_passes_the_comparison(tiny_llama, caplog):
    with serving(TinyModel(tiny_llama)) as server, caplog.at_level("INFO"):
        _ = served_model_of(tiny_llama, server.url, parity=3).ranker
    words = r"llm_http_parity: on 3 prompts the labels' log-probabilities differ by (\S+) nats"
    (mean,) = re.findall(words, caplog.text)
    assert float(mean) < 1e-4


def test_a_start_token_of_which_a_server_says_nothing_is_told_by_comparing(tiny_llama, tmp_path):
    stand_in = TinyModel(tiny_llama, start=0, tells_usage=False)
    for weight in stand_in.model.parameters():
        if weight.dim() > 1:
            weight.data *= 25  # a new model's hardly depend on what it has read
    stand_in.model.save_pretrained(tmp_path)
    stand_in.tokenizer.save_pretrained(tmp_path)
    differs = pytest.raises(ValueError, match=r"llm_http_parity: .*on 8 prompts.*nats on average")
    with serving(stand_in) as server:
        _ = served_model_of(tmp_path, server.url).ranker  # nothing tells
        with differs:
            _ = served_model_of(tmp_path, server.url, parity=8).ranker
        stand_in.start = None
        _ = served_model_of(tmp_path, server.url, parity=8).ranker


def test_parity_is_of_log_probabilities_and_orders():
    local = torch.tensor([[0.0, 1.0, 2.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    served = torch.tensor([[5.0, 6.0, 7.0], [3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    found = parity(served, local)
    assert (found.n_prompts, found.n_same_first, found.n_same_order) == (3, 2, 1)
    # of row 2 (row 3): the same probabilities of other candidates, 1 (2) nats apart at most
    assert found.largest == pytest.approx(2) and found.mean == pytest.approx((1 + 1 + 2 + 2) / 9)


def finished(settings: dict, **changes):
    """A run without tuning: trainer, result of ``fit``, metrics of the test."""
    init_seed(2020, True)
    run = run_of(settings, epochs=0, **changes)
    return run.trainer, run.trainer.fit(run.train, run.valid), run.trainer.evaluate(run.test)


@pytest.mark.parametrize("fusion", ["auto", None])
def test_a_run_with_a_server_gives_what_it_gives_here(tiny_run, tiny_llama, fusion, monkeypatch):
    _, expected, metrics = finished(tiny_run, rerank_fusion=fusion)
    monkeypatch.setattr("recbole_llamarec.scoring.language_model.load_language_model", None)
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-of-the-server")
    folder = Path(tiny_run["checkpoint_dir"]).with_name("served")
    with serving(TinyModel(tiny_llama)) as server:
        changes = {"llm_backend": "http", "llm_http_url": server.url, "checkpoint_dir": str(folder)}
        trainer, fitted, served = finished(tiny_run, rerank_fusion=fusion, **changes)
        assert served == pytest.approx(metrics)
        assert fitted[0] == pytest.approx(expected[0]) and fitted[1] == pytest.approx(expected[1])
        n_asked = len(server.asked)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)  # the checkpoint's is not taken
        recommender = Recommender.from_checkpoint(trainer.saved_model_file, tiny_run["data_path"])
        tokens = recommender.tokens[1:6].tolist()
        assert len(recommender.rank(tokens[:2], tokens[2:])) == 3
        assert len(server.asked) > n_asked
        assert recommender.model.settings.llm_http.url is None
    assert not any("adapter" in name for name in files({"checkpoint_dir": str(folder)}))
    held = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert server.url.encode() in held and b"a-secret" not in held


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 1}, "epochs: 1 tunes the language model"),
        ({"ranking_method": "likelihood"}, "llm_backend: http has no ranking_method: likelihood"),
        ({"lora_adapter": "some/folder"}, "lora_adapter: 'some/folder' cannot be put"),
        ({"llm_http_concurrency": 0}, "llm_http_concurrency: 0 must be"),
        ({"llm_http_url": "http://a:b@c/v1"}, "llm_http_url: .*OPENAI_API_KEY"),
        ({"llm_backend": "vllm"}, "llm_backend: 'vllm' must be local or http"),
    ],
)
def test_what_a_server_cannot_do_is_said_at_the_start(tiny_run, changes, words):
    with pytest.raises(ValueError, match=words):
        run_of(tiny_run, **({"llm_backend": "http", "epochs": 0} | changes))


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["vllm", "llama.cpp"])
def test_a_real_server_scores_as_the_embedded_model(manner):
    """The commands that start one stand in docs/engines.md."""
    name = {"vllm": "LLAMAREC_VLLM_URL", "llama.cpp": "LLAMAREC_LLAMA_CPP_URL"}[manner]
    if not (url := os.environ.get(name)):
        pytest.skip(f"{name} does not say where a server with the embedded model is")
    scorer = served_model_of("embedded", url, parity=10, timeout=120)
    assert (
        scorer.ranker.reader.form.name
        == {
            "vllm": "logprob_token_ids",
            "llama.cpp": "logit_bias",
        }[manner]
    )


def test_a_server_is_asked_only_when_it_is_needed(tiny_llama):
    with serving(StandIn()) as server:
        scorer = served_model_of(tiny_llama, server.url)
        assert scorer.name == "verbalizer" and server.headers == []
