"""``POST /rerank``: the ranking of ``POST /rank`` in the form of other rerankers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from running_service import run

TITLES = ["A film that nobody has seen", "The Silent House 44", "Another of that kind"]
POOL = [*TITLES, {"item": "i5"}, {"text": "A fifth"}]


def pairs(answer) -> list[tuple[int, float]]:
    """Places and scores of an answer, best first."""
    assert answer.status_code == 200, answer.text
    return [(own["index"], own["relevance_score"]) for own in answer.json()["results"]]


def expected(recommender, history, pool) -> list[tuple[int, float]]:
    """The same of ``Recommender.rank``, whose results have no places."""
    texts = [own if isinstance(own, str) else own["text"] for own in pool]
    titles = recommender.prompts.titles
    names = [titles[recommender.ids_of([t])[0]] if t in recommender.tokens else t for t in texts]
    return [
        (names.index(own.text), pytest.approx(own.probability, abs=1e-4))
        for own in recommender.rank(history, pool)
    ]


def as_pool(documents) -> list:
    """Documents as ``Recommender.rank`` takes them."""
    return [{"text": own} if isinstance(own, str) else own.get("item") or own for own in documents]


def test_results_are_the_ranking_by_place_in_the_request(service, recommender, test_rows):
    history = test_rows[1][0]
    answer = service.rerank(history, POOL)
    assert pairs(answer) == expected(recommender, history, as_pool(POOL))
    assert sorted(index for index, _ in pairs(answer)) == [0, 1, 2, 3, 4]
    assert sum(score for _, score in pairs(answer)) == pytest.approx(1, abs=1e-4)
    assert all(set(own) == {"index", "relevance_score"} for own in answer.json()["results"])


def test_a_history_may_be_titles_one_a_line(service, recommender, test_rows):
    history = test_rows[1][0]
    titles = [recommender.texts[item] for item in recommender.ids_of(history)]
    by_titles = service.rerank("\n".join(titles[:2]) + "\r\n\n " + "\n".join(titles[2:]), POOL)
    for (index, score), (other, value) in zip(
        pairs(by_titles), pairs(service.rerank(history, POOL)), strict=True
    ):
        assert index == other and score == pytest.approx(value, abs=1e-4)
    assert pairs(by_titles) != pairs(service.rerank("", POOL))
    unknown = [{"text": "A film of mine"}, {"text": "Another"}]
    answer = service.rerank("A film of mine\nAnother", POOL)
    assert pairs(answer) == expected(recommender, unknown, as_pool(POOL))
    assert len(recommender.prompts.titles) == recommender.model.n_items  # forgotten


def test_the_best_alone_and_the_documents_are_told_on_request(service, recommender):
    whole = pairs(service.rerank(["i1"], POOL))
    answer = service.rerank(["i1"], POOL, top_n=2, return_documents=True, model="any")
    assert [index for index, _ in pairs(answer)] == [index for index, _ in whole[:2]]
    every = service.rerank(["i1"], POOL, top_n=50, return_documents=True).json()["results"]
    texts = {own["index"]: own["document"]["text"] for own in every}
    (i5,) = recommender.ids_of(["i5"])
    assert texts == dict(enumerate([*TITLES, recommender.texts[i5], "A fifth"]))


def test_equal_documents_are_ranked_once_and_score_alike(service):
    alone = dict(pairs(service.rerank(["i1"], ["One", "Two", {"item": "i5"}])))
    documents = ["One", {"text": "One"}, "Two", {"item": "i5"}, {"item": "i5"}]
    scores = dict(pairs(service.rerank(["i1"], documents)))
    assert scores[0] == scores[1] == pytest.approx(alone[0], abs=1e-4)
    assert scores[3] == scores[4] == pytest.approx(alone[2], abs=1e-4)
    assert pairs(service.rerank(["i1"], ["One", {"text": "One"}])) == [(0, 1.0), (1, 1.0)]
    assert pairs(service.rerank([], [{"item": "i5"}])) == [(0, 1.0)]


def test_many_documents_are_ranked_in_the_order_of_rank(service, recommender):
    pool = [f"i{n}" for n in range(21)]
    found = [index for index, _ in pairs(service.rerank(["i30"], [{"item": t} for t in pool]))]
    assert found == [pool.index(own.item) for own in recommender.rank(["i30"], pool)]


def test_many_clients_get_each_their_own_ranking(service):
    requests = [([f"i{n}"], [f"Film {n + j}" for j in range(3 + n % 3)]) for n in range(12)]
    alone = [pairs(service.rerank(*request)) for request in requests]
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda request: service.rerank(*request), requests))
    for answer, scores in zip(answers, alone, strict=True):
        assert dict(pairs(answer)) == pytest.approx(dict(scores), abs=1e-4)


@pytest.fixture(scope="module")
def limited(recommender):
    running = run(recommender, max_history=3, max_candidates=4, max_text=20)
    yield running
    running.stop()


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"documents": ["a", "b"]}, "query", "Field required"),
        ({"query": 7, "documents": ["a", "b"]}, "query", "valid tuple"),
        ({"query": "a\nb\nc\nd", "documents": ["a"]}, "query", "At most 3 titles"),
        ({"query": "x" * 21, "documents": ["a"]}, "query", "At most 20 characters a title"),
        ({"query": ["i1"] * 4, "documents": ["a"]}, "query", "at most 3 items"),
        ({"query": ["i1", 2], "documents": ["a"]}, "query.1", "valid string"),
        ({"query": ["none"], "documents": ["a"]}, "query", "no item 'none'"),
        ({"query": "", "documents": []}, "documents", "at least 1 item"),
        ({"query": "", "documents": ["a"] * 5}, "documents", "at most 4 items"),
        ({"query": "", "documents": ["x" * 21]}, "documents.0", "at most 20 characters"),
        ({"query": "", "documents": [""]}, "documents.0", "at least 1 character"),
        ({"query": "", "documents": [7]}, "documents.0", "valid dictionary"),
        ({"query": "", "documents": ["a", {"item": "none"}]}, "documents", "no item 'none'"),
        ({"query": "", "documents": [{"item": "i1", "text": "a"}]}, "documents.0.text", "not perm"),
        ({"query": "", "documents": ["a"], "top_n": 0}, "top_n", "greater than or equal to 1"),
        ({"query": "", "documents": ["a"], "top_n": "1"}, "top_n", "valid integer"),
        ({"query": "", "documents": ["a"], "return_documents": 1}, "return_documents", "boolean"),
        ({"query": "", "documents": ["a"], "rank_fields": []}, "rank_fields", "not permitted"),
    ],
)
def test_errors_name_the_field(limited, body, field, words):
    answer = limited.client.post("/rerank", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field)
    assert words in error["message"]


def test_a_model_without_a_language_model_says_so(service, recommender, monkeypatch):
    monkeypatch.setattr(recommender.model, "scorers", {})
    assert service.rerank("", ["a", "b"]).status_code == 409
