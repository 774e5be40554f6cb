"""Letters on a server: the same scores as here, whatever form it takes, and nothing made up."""

from __future__ import annotations

from threading import Barrier

import pytest
import torch
from helpers import titles
from rankers import Settings, budget_of
from runs import pools_of
from stand_in_server import Reply, StandIn, TinyModel, serving
from transformers import AutoTokenizer

from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.model.forward import Padded
from recbole_llamarec.ranking.protocol import RankerParts, ServedParts
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.ranking.served.answers import LabelTokens, label_log_probabilities
from recbole_llamarec.ranking.served.client import BadAnswerError
from recbole_llamarec.ranking.served.server import LabelServer, MissingLabelsError
from recbole_llamarec.ranking.served.settings import HttpSettings
from recbole_llamarec.ranking.verbalizer import default_labels

TEXTS = ["", *titles(50)]
ROWS = pools_of(6)[:2]  # histories and candidates


class ServedSettings(Settings):
    def __init__(self, url: str, own: dict | None = None, **http):
        super().__init__(**(own or {}))
        object.__setattr__(self, "llm_http", HttpSettings(url=url, **({"timeout": 20} | http)))


def served(server: StandIn, tokenizer, own: dict | None = None, **http) -> Letters:
    return Letters.served(ServedParts(tokenizer, TEXTS, ServedSettings(server.url, own, **http)))


@pytest.fixture(scope="module")
def local(tiny_llama) -> Letters:
    """The same ranker with its model here."""
    own = TinyModel(tiny_llama)
    return Letters.build(
        RankerParts(own.model, own.tokenizer, Padded(own.model), TEXTS, Settings())
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def rank(ranker) -> torch.Tensor:
    return rank_all(ranker, *ROWS, budget_of(1000))


@pytest.mark.parametrize(
    ("manner", "form", "others"),
    [
        ("vllm", "logprob_token_ids", ()),
        ("llama.cpp", "logit_bias", ()),
        # Other tokens are as probable as the labels, so that the first 7 are not the labels alone.
        ("old vllm", "logprobs: 20", (1, 2, 3)),
        ("openai", "logprobs: 20 by text", (1, 2, 3)),
    ],
)
def test_a_server_scores_as_the_model_does_here(tiny_llama, local, tokenizer, manner, form, others):
    lifted = () if manner == "vllm" else (*local.verbalizer.token_ids, *others)
    with serving(TinyModel(tiny_llama, manner, lifted=lifted)) as server:
        ranker = served(server, tokenizer)
        assert ranker.reader.form.name == form
        assert torch.allclose(rank(ranker), rank(local), atol=1e-4)
    last = server.asked[-1]
    assert (last["model"], last["max_tokens"]) == ("tiny", 1)
    assert last["prompt"] in [ranker.encode(*row).context for row in zip(*ROWS, strict=True)]


def test_missing_labels_are_named_and_not_made_up(tiny_llama, tokenizer):
    with serving(TinyModel(tiny_llama, "openai")) as server:
        ranker = served(server, tokenizer)
        with pytest.raises(MissingLabelsError, match=r"lacks the labels '[A-G]' \(\d+\)") as error:
            rank(ranker)
    assert error.value.row in range(6)
    assert str(error.value).startswith(f"Row {error.value.row}: ")
    for words in ("logprobs: 20 by text", "--max-logprobs=128", "rerank_candidates"):
        assert words in str(error.value)


def test_a_bias_that_changes_differences_is_not_trusted(tiny_llama, tokenizer, local, monkeypatch):
    content = TinyModel._content

    def clamped(self, body, plain, behind, sampled):  # as a server that clamps what it gives
        return content(self, body, plain, behind.clamp(min=-1).log_softmax(0), sampled)

    monkeypatch.setattr(TinyModel, "_content", clamped)
    lifted = local.verbalizer.token_ids
    with serving(TinyModel(tiny_llama, "llama.cpp", most_top=128, lifted=lifted)) as server:
        assert served(server, tokenizer).reader.form.name == "logprobs: 128"


def test_a_start_token_of_the_server_is_told_by_its_count(tiny_llama, tokenizer):
    told = pytest.raises(ValueError, match=r"the server read \d+ tokens.*\(BOS\)")
    with serving(TinyModel(tiny_llama, start=0)) as server, told:
        served(server, tokenizer)


def test_many_prompts_are_in_flight(tiny_llama, tokenizer):
    """No answer is given before eight questions are asked."""
    with serving(TinyModel(tiny_llama)) as server:
        ranker = served(server, tokenizer, concurrency=8)
        encoded = [ranker.encode([item], range(3, 10)) for item in range(10, 18)]
        expected = torch.cat([ranker.scores([one]) for one in encoded])  # [8, K]
        asked, complete = Barrier(8), server.complete

        def together(body):
            asked.wait(timeout=10)
            return complete(body)

        server.complete = together
        assert torch.allclose(ranker.scores(encoded), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "gives no choices"),
        ({"choices": []}, "gives 0 choices"),
        ({"choices": [{}, {}]}, "gives 2 choices"),
        ({"choices": [{"logprobs": None}]}, "no log-probabilities of one token"),
        ({"choices": [{"logprobs": {"top_logprobs": []}}]}, "no log-probabilities of one token"),
        ({"choices": [{"logprobs": [1]}]}, "no log-probabilities of one token"),
        ({"choices": [{"logprobs": "none"}]}, "no log-probabilities of one token"),
        ({"choices": [{"logprobs": {"content": [{"top_logprobs": 5}]}}]}, "of one token"),
        ({"choices": [{"logprobs": {"content": [{"top_probs": ["A"]}]}}]}, "of one token"),
        ({"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": "x"}]}}]}, "is no number"),
        ({"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": None}]}}]}, "is no number"),
    ],
)
def test_answers_of_another_form_are_refused(tokenizer, body, words):
    with pytest.raises(BadAnswerError, match=f"llm_http_url: .*{words}"):
        label_log_probabilities(body, LabelTokens(tokenizer, [5, 6]), 3)


def test_the_list_that_holds_the_token_is_read(tokenizer):
    logprobs = {"content": [], "top_logprobs": [{"token_id:5": -1.0}]}
    answer = {"choices": [{"logprobs": logprobs}]}
    assert label_log_probabilities(answer, LabelTokens(tokenizer, [5, 6]), 3) == {5: -1.0}


def test_an_answer_that_changes_its_form_in_the_run_ends_it(tiny_llama, tokenizer):
    with serving(TinyModel(tiny_llama)) as server:
        ranker = served(server, tokenizer)
        server.first = [Reply({"choices": [{}, {}]})]
        with pytest.raises(BadAnswerError, match="2 choices"):
            rank(ranker)


def test_labels_are_told_by_text_only_where_no_other_token_has_it(tokenizer):
    class Same(type(tokenizer)):  # a tokenizer two tokens of which have one text
        def decode(self, ids, **options):
            return "A" if ids in ([5], [9]) else f"<{ids[0]}>"

    twins = Same(tokenizer_object=tokenizer._tokenizer)
    answer = {"choices": [{"logprobs": {"top_logprobs": [{"A": -1.0, "<6>": -2.0}]}}]}
    assert label_log_probabilities(answer, LabelTokens(twins, [6, 7]), 3) == {6: -2.0}
    with pytest.raises(BadAnswerError, match="'A' is both the label's token 5 and the token 9"):
        label_log_probabilities(answer, LabelTokens(twins, [5, 6]), 3)


def test_a_server_without_log_probabilities_says_why_it_is_not_taken(tokenizer):
    refused = pytest.raises(ValueError, match="gives no log-probabilities of the labels")
    with serving(StandIn()) as server, refused as error:
        served(server, tokenizer)
    assert "logprob_token_ids: " in str(error.value)
    assert "logprobs: 5 by text: " in str(error.value)


def test_the_model_is_the_only_one_or_named(monkeypatch):
    models = {"data": [{"id": "one"}, {"id": "two", "max_model_len": 99}]}
    monkeypatch.setattr("stand_in_server.MODELS", models)
    with serving(StandIn()) as server:
        with pytest.raises(ValueError, match="llm_http_model: .* has 2 models: one, two"):
            LabelServer(HttpSettings(url=server.url))
        assert LabelServer(HttpSettings(url=server.url, model="two")).max_tokens == 99
        assert LabelServer(HttpSettings(url=server.url, model="other")).max_tokens is None


def test_prompts_keep_below_what_the_server_takes(tiny_llama, tokenizer, monkeypatch):
    monkeypatch.setattr("stand_in_server.MODELS", {"data": [{"id": "a", "max_model_len": 250}]})
    with serving(TinyModel(tiny_llama)) as server:
        ranker = served(server, tokenizer)
    assert len(ranker.encode(list(range(10, 30)), range(1, 8)).context) <= 249


def test_a_longer_prompt_than_the_server_takes_is_refused(tokenizer):
    told = pytest.raises(ValueError, match="prompt_max_tokens: 2048 .* 1 of them behind .* 2047")
    with serving(StandIn()) as server, told:
        served(server, tokenizer, {"prompt_max_tokens": 2048})


def test_a_server_is_tried_with_no_more_candidates_than_are_ranked(tiny_llama, tokenizer, local):
    n_tokens = len(local.encode([1], range(1, 8)).context)
    own = {"verbalizer_labels": default_labels(52), "prompt_max_tokens": n_tokens + 4}
    with serving(TinyModel(tiny_llama)) as server:
        assert served(server, tokenizer, own).max_candidates == 52


def test_a_ranker_with_scores_of_its_own_is_not_served(tokenizer):
    class Own(Letters):
        def scores(self, batch):
            return super().scores(batch) / 2

    with pytest.raises(ValueError, match="Own has scores of its own"):
        Own.served(ServedParts(tokenizer, TEXTS, ServedSettings("http://127.0.0.1:1/v1")))


def test_the_address_is_the_keys_or_the_environments(monkeypatch):
    assert HttpSettings().address == "http://127.0.0.1:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://host/v1")
    assert HttpSettings().address == "https://host/v1"
    assert HttpSettings(url="http://other/v1").address == "http://other/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "host")
    with pytest.raises(ValueError, match="environment variable OPENAI_BASE_URL: 'host' must be"):
        _ = HttpSettings().address


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http://user:secret@host/v1",
        "http://host/v1?key=secret",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http:///v1",
        "http://ho st/v1",
        "http://host/v1\r\nX: y",
    ],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="llm_http_url: .*OPENAI_API_KEY"):
        HttpSettings(url=url)
