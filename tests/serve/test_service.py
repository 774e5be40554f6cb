"""The service over HTTP: the recommender's answers, each its own, and what happens under load."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import asdict

import httpx2
import pytest
from running_service import run, wait_until

from recbole_llamarec.scoring.fusion import Fusion

POOL = ["i1", "i5", "i7", {"text": "A film that nobody has seen"}]


def tokens(response) -> list[str | None]:
    assert response.status_code == 200, response.text
    return [item["item"] for item in response.json()["items"]]


def assert_equal_items(items, expected) -> None:
    """Equal but for the rounding of scores in another batch."""
    assert len(items) == len(expected)
    for item, other in zip(items, map(asdict, expected), strict=True):
        for key in ("score", "probability"):
            assert item.pop(key) == pytest.approx(other.pop(key), abs=1e-4)
        assert item == other


# --- answers -------------------------------------------------------------------------------------


def test_recommendations_are_the_recommenders_in_the_evaluators_order(
    service, recommender, test_rows
):
    _, histories, orders = test_rows
    for history, order in list(zip(histories, orders, strict=True))[:8]:
        answer = service.recommend(history, k=12).json()
        assert [item["item"] for item in answer["items"]] == order[:12]
        assert_equal_items(answer["items"], recommender.recommend([history], 12)[0])
        assert answer["is_reranked"] is True
        assert answer["prompt"] is None


def test_given_candidates_are_ranked_and_texts_are_forgotten(service, recommender, test_rows):
    _, histories, _ = test_rows
    known = len(recommender.prompts.titles)
    answer = service.rank(histories[0], POOL)
    assert None in tokens(answer)
    assert_equal_items(answer.json()["items"], recommender.rank(histories[0], POOL))
    assert tokens(service.rank([], [f"i{n}" for n in range(20)])) == [
        item.item for item in recommender.rank([], [f"i{n}" for n in range(20)])
    ]
    assert len(recommender.prompts.titles) == known


def test_the_prompt_is_told_on_request(service, recommender, test_rows):
    _, histories, _ = test_rows
    answer = service.recommend(histories[0], k=2, prompt=True).json()
    assert len(answer["items"]) == 2
    (whole,) = recommender.recommend(histories[:1], 8)
    shown = sorted(whole, key=lambda item: item.retriever_rank)
    assert answer["prompt"] == recommender.prompt(histories[0], [item.item for item in shown])
    assert "A film that nobody has seen (D)" in service.rank([], POOL, prompt=True).json()["prompt"]
    refused = service.rank([], [f"i{n}" for n in range(9)], prompt=True)
    assert refused.status_code == 422
    assert refused.json()["error"]["field"] == "prompt"


def test_the_prompt_is_the_one_that_was_read_where_few_items_are_not_seen(service, recommender):
    *history, two, one = recommender.tokens[1:].tolist()
    (result,) = recommender.recommend([history], 2)
    shown = [item.item for item in sorted(result, key=lambda item: item.retriever_rank)]
    assert set(shown) == {one, two}
    assert service.recommend(history, prompt=True).json()["prompt"] == recommender.prompt(
        history, shown
    )
    assert service.recommend([*history, two], prompt=True).json()["prompt"] is None  # not asked


def test_a_ranker_without_weight_is_not_asked(service, recommender, test_rows, monkeypatch):
    monkeypatch.setattr(recommender.model, "fusion", Fusion({"verbalizer": 0.0}))
    answer = service.recommend(test_rows[1][0], k=12, prompt=True).json()
    assert [item["retriever_rank"] for item in answer["items"]] == list(range(1, 13))
    assert all(item["probability"] is item["score"] is None for item in answer["items"])
    assert (answer["is_reranked"], answer["prompt"]) == (False, None)
    about = service.client.get("/model").json()
    assert (about["ranker"], about["ranking_method"]) == ("no weight", "verbalizer")
    assert (about["weights"], about["with_retriever"]) == ({"verbalizer": 0.0}, True)
    assert service.rank([], POOL).status_code == 200  # asked for by name


def test_a_model_without_a_language_model_says_so(service, recommender, monkeypatch):
    monkeypatch.setattr(recommender.model, "scorers", {})
    monkeypatch.setattr(recommender.model, "fusion", Fusion({}))
    answer = service.rank([], POOL)
    assert (answer.status_code, answer.json()["error"]["field"]) == (409, None)
    assert service.client.get("/model").json()["ranker"] == "none"
    assert service.recommend(["i1"]).json()["is_reranked"] is False


# --- many at a time ------------------------------------------------------------------------------


def test_many_clients_get_each_their_own_answer(start, recommender, test_rows):
    _, histories, _ = test_rows
    jobs = []
    for n, history in enumerate(histories[:24]):
        pool = [f"i{(n + 3 * j) % 60}" for j in range(4 + n % 3)]
        jobs.append(
            (lambda s, h=history, n=n: s.recommend(h, k=5 + n % 7), ("k", history, 5 + n % 7))
        )
        jobs.append((lambda s, h=history, p=pool: s.rank(h, p), ("pool", history, pool)))
    running = start()
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda job: job[0](running), jobs))
    for answer, (_, (kind, history, what)) in zip(answers, jobs, strict=True):
        assert answer.status_code == 200
        alone = (
            recommender.rank(history, what)
            if kind == "pool"
            else recommender.recommend([history], what)[0]
        )
        assert_equal_items(answer.json()["items"], alone)
    computed = running.metric("llamarec_batch_requests_sum")
    assert computed > 1.5 * running.metric("llamarec_batch_requests_count")


def test_what_arrives_together_is_one_call(start, gate):
    running = start()
    gate.opened.clear()
    histories = [[f"i{n}"] for n in range(7)]
    with ThreadPoolExecutor(16) as threads:
        first = threads.submit(running.recommend, ["i50"])
        wait_until(lambda: gate.batches[-1] == [("i50",)])
        others = [threads.submit(running.recommend, history) for history in [*histories, ["i1"]]]
        wait_until(lambda: len(running.server.service.worker) == 8)
        gate.opened.set()
        assert {future.result().status_code for future in [first, *others]} == {200}
    assert sorted(gate.batches[-1]) == [(f"i{n}",) for n in range(7)]  # equal requests once


def test_a_request_that_fails_fails_alone(start, recommender, gate, monkeypatch, caplog):
    running = start()
    recommend = recommender.recommend

    def fragile(histories, k):
        if ("i3",) in histories:
            raise RuntimeError("no luck")
        if ("i4",) in histories:
            raise ValueError("prompt_max_tokens is too low")
        return recommend(histories, k)

    monkeypatch.setattr(recommender, "recommend", fragile)
    gate.opened.clear()
    with ThreadPoolExecutor(16) as threads:
        first = threads.submit(running.recommend, ["i50"])
        wait_until(lambda: gate.batches[-1] == [("i50",)])
        others = [threads.submit(running.recommend, [f"i{n}"]) for n in range(6)]
        wait_until(lambda: len(running.server.service.worker) == 6)
        gate.opened.set()
        answers = [future.result() for future in others]
    assert first.result().status_code == 200
    assert [answer.status_code for answer in answers] == [200, 200, 200, 500, 422, 200]
    assert "log says why" in answers[3].json()["error"]["message"]
    assert "prompt_max_tokens" in answers[4].json()["error"]["message"]


@pytest.mark.parametrize("error", [SystemExit, StopIteration, CancelledError])
def test_what_would_end_the_models_thread_is_a_500(error, start, recommender, monkeypatch):
    running = start(deadline=5)

    def ending(*_):
        raise error("over")

    with monkeypatch.context() as patch:
        patch.setattr(recommender, "recommend", ending)
        for _ in range(2):
            answer = running.recommend(["i1"])
            assert answer.status_code == 500
            assert "log says why" in answer.json()["error"]["message"]
    assert running.recommend(["i1"]).status_code == 200
    assert running.client.get("/health").status_code == 200


def test_a_full_queue_refuses_and_says_when_to_come_again(start, gate):
    running = start(queue=2)
    gate.opened.clear()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(running.recommend, ["i1"])
        wait_until(lambda: gate.batches[-1] == [("i1",)])
        waiting = [threads.submit(running.recommend, [f"i{n}"]) for n in (2, 3)]
        wait_until(lambda: len(running.server.service.worker) == 2)
        refused = running.recommend(["i4"])
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "busy" in refused.json()["error"]["message"]
        gate.opened.set()
        assert [future.result().status_code for future in (first, *waiting)] == [200] * 3
    assert running.recommend(["i4"]).status_code == 200


def test_a_request_has_a_deadline(start, gate):
    running = start(deadline=0.3)
    gate.opened.clear()
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(running.recommend, [token]) for token in ("i1", "i2")]
        assert [future.result().status_code for future in both] == [504, 504]
    wait_until(lambda: not len(running.server.service.worker))  # it cancels after its answer
    assert len(running.server.service.worker) == 0  # nobody waits for the second one
    assert len(gate.batches) <= 2 + 1  # the warm-up, the first, perhaps both at once
    gate.opened.set()
    assert running.recommend(["i1"]).status_code == 200


def post_and_leave(running, history) -> socket.socket:
    """Send a request whose answer is not awaited; the caller closes the connection."""
    body = json.dumps({"history": history}).encode()
    connection = socket.create_connection(running.server.address)
    connection.sendall(
        b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def test_a_client_that_goes_away_costs_nothing(start, gate):
    running = start()
    gate.opened.clear()
    worker = running.server.service.worker
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(running.recommend, ["i1"])
        wait_until(lambda: gate.batches[-1] == [("i1",)])
        leaving = post_and_leave(running, ["i2"])
        wait_until(lambda: len(worker) == 1)
        staying = threads.submit(running.recommend, ["i3"])
        wait_until(lambda: len(worker) == 2)
        leaving.close()
        wait_until(lambda: len(worker) == 1)
        gate.opened.set()
        assert first.result().status_code == staying.result().status_code == 200
    assert gate.batches[-1] == [("i3",)]
    assert running.metric("llamarec_requests_total", path="/recommend", status="499") == 1


def test_a_signal_finishes_what_has_come_and_refuses_the_rest(start, gate):
    running = start()
    gate.opened.clear()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(running.recommend, ["i1"])
        wait_until(lambda: gate.batches[-1] == [("i1",)])
        second = threads.submit(running.recommend, ["i2"])
        wait_until(lambda: len(running.server.service.worker) == 1)
        late = socket.create_connection(running.server.address)
        late.sendall(b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18\r\n")
        late.sendall(b"Content-Type: application/json\r\n\r\n")
        wait_until(lambda: len(running.server.server_state.tasks) == 3)
        running.server.handle_exit(signal.SIGTERM, None)
        late.sendall(b'{"history":["i3"]}')  # its body comes after the signal
        assert late.recv(100).startswith(b"HTTP/1.1 503")
        late.close()
        wait_until(lambda: not running.server.servers[0].is_serving())
        with pytest.raises(httpx2.TransportError):
            httpx2.get(running.url + "/health")
        gate.opened.set()
        assert first.result().status_code == second.result().status_code == 200
    running.thread.join(20)
    assert not running.thread.is_alive()


def test_answers_are_kept_where_that_is_asked_for(start, gate):
    running = start(cache=2)
    n_before = len(gate.batches)
    for token in ("i1", "i2", "i1", "i3", "i1", "i2"):  # i3 drives i2 out
        assert running.recommend([token]).status_code == 200
    assert gate.batches[n_before:] == [[("i1",)], [("i2",)], [("i3",)], [("i2",)]]
    assert running.metric("llamarec_cache_hits_total") == 2
    assert running.recommend(["i2"]).json() == running.recommend(["i2"]).json()
    assert running.recommend(["i2"], k=3).json()["items"][2]["rank"] == 3  # another request


# --- who may ask, and how much -------------------------------------------------------------------


def test_a_token_is_asked_for_everywhere_but_where_nothing_is_told(start):
    running = start(token="sesame é")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame é"}):
        encoded = {key: value.encode() for key, value in headers.items()}
        for path in ("/model", "/items", "/metrics", "/nothing"):
            refused = running.client.get(path, headers=encoded)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert running.client.post("/recommend", headers=encoded).status_code == 401
    for path in ("/", "/docs", "/openapi.json", "/health"):
        assert running.client.get(path).status_code == 200
    right = {"Authorization": "bearer sesame é".encode()}
    assert running.client.get("/model", headers=right).status_code == 200
    assert "HTTPBearer" in running.client.get("/openapi.json").text


def test_two_authorization_headers_are_refused(start):
    running = start(token="sesame")
    right, wrong = ("Authorization", "Bearer sesame"), ("Authorization", "Bearer open")
    for headers in ([right, right], [right, wrong], [wrong, right]):
        refused = running.client.get("/model", headers=headers)
        assert refused.status_code == 401
        assert "give one" in refused.json()["error"]["message"]
    assert running.client.get("/model", headers=[right]).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("films.example:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("films.example.evil", 421),
        ("127.0.0.1.evil.example:8000", 421),
        ("192.168.0.1", 421),
        ("[::2]", 421),
        ("", 421),
    ],
)
def test_the_name_of_the_host_is_checked_where_there_is_no_token(host, status, named, start):
    for path in ("/", "/health", "/model", "/nothing"):
        answer = named.client.get(path, headers={"Host": host})
        assert answer.status_code == (404 if (path, status) == ("/nothing", 200) else status)
        assert status == 200 or "--allow-host" in answer.json()["error"]["message"]


def test_with_a_token_any_name_of_the_host_passes(start):
    running = start(token="sesame")
    headers = {"Authorization": "Bearer sesame", "Host": "proxy.example"}
    assert running.client.get("/model", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def named(recommender):
    running = run(recommender, allow_hosts=["Films.example"])
    yield running
    running.stop()


def test_a_large_body_is_not_read(start):
    running = start(max_body=1000)
    body = b'{"history": ["' + 2000 * b"x" + b'"]}'
    headers = {"Content-Type": "application/json"}
    announced = running.client.post("/recommend", content=body, headers=headers)
    in_chunks = running.client.post(
        "/recommend", content=(body[i : i + 100] for i in range(0, len(body), 100)), headers=headers
    )
    for refused in (announced, in_chunks):
        assert refused.status_code == 413
        assert "1000 bytes" in refused.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(start):
    running = start(deadline=0.2)
    with socket.create_connection(running.server.address) as connection:
        connection.sendall(
            b"POST /recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        ("/recommend", {"history": []}, "history", "at least 1 item"),
        ("/recommend", {"history": ["i1"] * 6}, "history", "at most 5 items"),
        ("/recommend", {"history": ["i1", 2]}, "history.1", "valid string"),
        ("/recommend", {"history": ["i1", "nothing"]}, "history", "no item 'nothing'"),
        ("/recommend", {"history": ["i1"], "k": 8}, "k", "less than or equal to 7"),
        ("/recommend", {"history": ["i1"], "k": 0}, "k", "greater than or equal to 1"),
        ("/recommend", {"history": ["i1"], "k": "5"}, "k", "valid integer"),
        ("/recommend", {"history": ["i1"], "k": True}, "k", "valid integer"),
        ("/recommend", {"history": ["i1"], "k": 2.5}, "k", "valid integer"),
        ("/recommend", {"history": ["i1"], "prompt": 1}, "prompt", "valid boolean"),
        ("/recommend", {"history": ["i1"], "K": 5}, "K", "not permitted"),
        ("/recommend", {}, "history", "Field required"),
        ("/recommend", [], None, "valid dictionary"),
        ("/rank", {"history": [], "candidates": ["i1"]}, "candidates", "at least 2 items"),
        ("/rank", {"history": [], "candidates": ["i1"] * 7}, "candidates", "at most 6 items"),
        ("/rank", {"history": [], "candidates": ["i1", "i1"]}, "candidates", "twice"),
        ("/rank", {"history": [], "candidates": ["i1", "none"]}, "candidates", "no item 'none'"),
        ("/rank", {"history": ["none"], "candidates": ["i1", "i2"]}, "history", "no item 'none'"),
        (
            "/rank",
            {"history": [], "candidates": ["i1", {"text": "x" * 21}]},
            "candidates.1.text",
            "at most 20 characters",
        ),
        ("/rank", {"history": [], "candidates": ["i1", 7]}, "candidates.1", "valid dictionary"),
    ],
)
def test_errors_name_the_field(limited, path, body, field, words):
    answer = limited.client.post(path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field)
    assert words in error["message"]


@pytest.fixture(scope="module")
def limited(recommender):
    running = run(recommender, max_history=5, max_k=7, max_candidates=6, max_text=20)
    yield running
    running.stop()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/recommend/", 404),
        ("GET", "/recommend", 405),
        ("DELETE", "/items", 405),
        ("GET", "/items?limit=x", 422),
        ("GET", "/items?limit=1000", 422),
    ],
)
def test_every_error_has_the_same_form(service, method, path, status):
    answer = service.client.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"field", "message"}
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b'{"history": ["\\ud800"]}', b'{"history": ["i1"], "k": 1e999}', b""]
)
def test_bodies_that_are_no_requests_are_refused(service, body):
    headers = {"Content-Type": "application/json"}
    answer = service.client.post("/recommend", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def test_deep_or_long_numbers_in_a_body_are_refused(service):
    headers = {"Content-Type": "application/json"}
    for body in (b"[" * 100_000, b'{"history": ["i1"], "k": ' + b"9" * 10_000 + b"}"):
        answer = service.client.post("/recommend", content=body, headers=headers)
        assert answer.status_code in (400, 422)


# --- what else there is --------------------------------------------------------------------------


def test_items_are_found_by_their_titles(service, recommender):
    title, token = recommender.texts[5], str(recommender.tokens[5])
    assert {"item": token, "text": title} in service.client.get(
        "/items", params={"query": title.upper()}
    ).json()["items"]
    assert len(service.client.get("/items?limit=3").json()["items"]) == 3
    assert service.client.get("/items?query=zzz").json() == {"items": []}


def test_metrics_count_what_happened(start):
    running = start()
    running.recommend(["i1"])
    running.recommend([])
    running.client.get("/a/path/of/no/route")
    text = running.client.get("/metrics").text
    assert 'llamarec_requests_total{path="/recommend",status="200"} 1.0' in text
    assert 'llamarec_requests_total{path="/recommend",status="422"} 1.0' in text
    assert 'llamarec_requests_total{path="other",status="404"} 1.0' in text
    assert 'llamarec_request_seconds_count{path="/recommend"} 2.0' in text
    assert "llamarec_batch_requests_count 2.0" in text  # and the warm-up
    assert "process_resident_memory_bytes" in text


def test_health_tells_when_it_stops(start):
    running = start()
    assert running.client.get("/health").json() == {"status": "ok"}
    running.server.service.worker.is_accepting = False
    assert running.client.get("/health").status_code == 503
