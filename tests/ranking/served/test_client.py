"""Asking a server: what is tried again, what is not, and what a failure says."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from stand_in_server import Reply, StandIn, serving

from recbole_llamarec.ranking.served import client as module
from recbole_llamarec.ranking.served.client import (
    BadAnswerError,
    Client,
    RefusedError,
    ServerError,
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)


def ask(stand_in: StandIn, timeout: float = 5.0) -> dict:
    return Client(stand_in.url, timeout).ask("/completions", {"prompt": [1]})


@pytest.mark.parametrize(
    "fault",
    [
        Reply({"error": {"message": "busy"}}, 500),
        Reply(b"<html>", 503),
        Reply(b'{"asked"', headers={"Content-Length": "100"}),  # the connection breaks
        Reply(b'64\r\n{"error"', 500, {"Transfer-Encoding": "chunked"}),  # within an error
    ],
    ids=["500", "503", "cut", "cut error"],
)
def test_a_server_that_fails_is_asked_again(fault):
    with serving(StandIn(fault, fault)) as server:
        assert ask(server) == {"asked": 3}


@pytest.mark.parametrize("is_date", [False, True])
def test_a_server_that_names_a_time_is_left_alone_until_then(is_date):
    after = formatdate(time.time() + 2, usegmt=True) if is_date else "0.3"
    with serving(StandIn(Reply({}, 429, {"Retry-After": after}))) as server:
        start = time.monotonic()
        assert ask(server) == {"asked": 2}
        assert time.monotonic() - start > 0.3


@pytest.mark.parametrize("after", [None, "0", "-1", formatdate(0, usegmt=True), "soon"])
def test_waits_grow_whatever_less_a_server_asks_for(after):
    headers = {} if after is None else {"Retry-After": after}
    with serving(StandIn(*[Reply({}, 500, headers)] * 4)) as server:
        start = time.monotonic()
        ask(server)
        assert 0.01 + 0.02 + 0.04 + 0.08 <= time.monotonic() - start < 3


def test_the_deadline_holds_for_all_tries_together():
    with serving(StandIn(*[Reply({"error": "too much to do"}, 500)] * 99)) as server:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"within 0.3 s \(llm_http_timeout\).*too much to do"):
            ask(server, timeout=0.3)
        assert time.monotonic() - start < 1


def test_a_time_beyond_the_deadline_is_not_waited_for():
    with serving(StandIn(Reply({}, 429, {"Retry-After": "60"}))) as server:
        with pytest.raises(ServerError, match="HTTP 429"):
            ask(server)
        assert len(server.asked) == 1


def test_a_server_that_does_not_answer_in_time_is_given_up():
    with serving(StandIn(Reply(seconds=1.0))) as server:
        start = time.monotonic()
        with pytest.raises(ServerError, match="llm_http_timeout"):
            ask(server, timeout=0.2)
        assert time.monotonic() - start < 0.8


def test_an_answer_that_comes_drop_by_drop_is_not_waited_for():
    given_up = pytest.raises(ServerError, match="not complete in time")
    with serving(StandIn(Reply(b" " * 40 + b"{}", seconds_a_byte=0.05))) as server, given_up:
        ask(server, timeout=0.3)


def test_an_error_that_comes_drop_by_drop_is_not_waited_for():
    with serving(StandIn(Reply(b" " * 40, 400, seconds_a_byte=0.05))) as server:
        start = time.monotonic()
        with pytest.raises(RefusedError, match="HTTP 400"):
            ask(server, timeout=0.3)
        assert time.monotonic() - start < 1


def test_nobody_there():
    with serving(StandIn()) as server:
        pass
    with pytest.raises(ServerError, match="llm_http_url: no answer of .*refused"):
        ask(server, timeout=0.1)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"[1]"])
def test_an_answer_that_is_no_json_object_is_shown(body):
    with serving(StandIn(Reply(body))) as server:
        with pytest.raises(BadAnswerError, match="with a JSON object"):
            ask(server)
        assert len(server.asked) == 1


def test_a_request_that_is_refused_is_not_repeated():
    with serving(StandIn(Reply({"error": {"message": "prompt too long"}}, 400))) as server:
        where = f"llm_http_url: {server.url}/completions answers HTTP 400: prompt too long"
        with pytest.raises(RefusedError, match=where):
            ask(server)
        assert len(server.asked) == 1


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " secret\n")
    with serving(StandIn(Reply({}, 401))) as server:
        with pytest.raises(ServerError, match="OPENAI_API_KEY") as error:
            ask(server)
        ask(server)
    assert [one["Authorization"] for one in server.headers] == ["Bearer secret"] * 2
    assert "secret" not in str(error.value)


def test_a_key_that_no_header_may_have_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\r\nX: y")
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
        Client("http://127.0.0.1:1/v1", 1)
    assert "secret" not in str(error.value)


def test_the_key_is_not_taken_elsewhere(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(StandIn()) as other:
        redirect = Reply({}, 302, {"Location": f"{other.url}/completions"})
        with serving(StandIn(redirect)) as server, pytest.raises(ServerError, match="HTTP 302"):
            ask(server)
        assert other.headers == []
