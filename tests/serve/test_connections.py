"""Connections that hold the service up: limits, times, and as many as the process can open."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import resource
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx2
import pytest
from helpers import environment
from running_service import wait_until

from recbole_llamarec.serve.connections import LoopErrors

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "


def connect(stack: ExitStack, address, source: str = "127.0.0.1", sent: bytes = b""):
    """A connection from an address of this machine, on which a part of a request is sent."""
    connection = socket.create_connection(address, timeout=20, source_address=(source, 0))
    stack.enter_context(connection)
    connection.sendall(sent)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the service closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def assert_error(answer: bytes, status: int, words: str) -> None:
    """An answer is an error in the documented form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/json" in head
    assert f"content-length: {len(body)}".encode() in head
    error = json.loads(body)["error"]
    assert set(error) == {"field", "message"}
    assert words in error["message"]


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",  # without Host
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"x" * 100_000,
        b"POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /rank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_in_the_documented_form(sent, service):
    with ExitStack() as stack:
        answer = read_all(connect(stack, service.server.address, sent=sent))
    assert_error(answer, 400, "no valid HTTP/1.1")


def test_a_header_has_a_time(start):
    running = start(header_time=0.3)
    with ExitStack() as stack:
        silent = connect(stack, running.server.address)
        slow = connect(stack, running.server.address, sent=HALF)
        begin = time.monotonic()
        for _ in range(5):  # each byte alone gets no new time
            time.sleep(0.04)
            slow.sendall(b"x")
        assert_error(read_all(slow), 408, "header did not arrive")
        assert read_all(silent) == b""
        assert time.monotonic() - begin < 3
    assert running.metric("llamarec_connections_refused_total", reason="header_time") == 1


def test_a_header_behind_an_answer_has_a_time(start):
    running = start(header_time=0.3)
    with ExitStack() as stack:
        connection = connect(stack, running.server.address, sent=HALF + b"\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += connection.recv(65536)
        time.sleep(0.5)  # it is kept open
        connection.sendall(HALF)
        assert_error(read_all(connection), 408, "header did not arrive")


def test_the_rest_of_a_refused_body_has_a_time(start):
    running = start(token="sesame", header_time=0.3)
    head = b"POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with ExitStack() as stack:
        connection = connect(stack, running.server.address, sent=head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401")
        begin = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - begin < 5:
                connection.sendall(b"x")
                time.sleep(0.02)


def test_answers_that_are_not_read_are_dropped(start):
    running = start(deadline=0.5)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(0.2)
        connection.connect(running.server.address)
        with pytest.raises(OSError):  # all buffers are full, or the service has given up
            for _ in range(100_000):
                connection.sendall(100 * request)
        wait_until(lambda: not running.server.server_state.connections)
    assert running.client.get("/health").status_code == 200


def test_one_client_does_not_take_the_others_connections(start):
    running = start(connections=8, client_connections=4)
    address = running.server.address
    with ExitStack() as stack:
        for _ in range(4):
            connect(stack, address, "127.0.0.2", HALF)
        wait_until(lambda: len(running.server.server_state.connections) == 4)
        for _ in range(20):
            assert_error(read_all(connect(stack, address, "127.0.0.2")), 503, "busy")
        assert running.client.get("/health").status_code == 200  # one of 127.0.0.1
        for _ in range(3):
            connect(stack, address, "127.0.0.3", HALF)
        wait_until(lambda: len(running.server.server_state.connections) == 8)
        assert_error(read_all(connect(stack, address, "127.0.0.4")), 503, "busy")
        assert running.client.get("/health").status_code == 200  # on its own connection
    refused = "llamarec_connections_refused_total"
    assert running.metric(refused, reason="client_connections") == 20
    assert running.metric(refused, reason="connections") == 1


def test_a_burst_is_answered_or_told_to_come_again(start):
    running = start(connections=4)
    with ThreadPoolExecutor(40) as threads:
        statuses = list(threads.map(status_of_one, [running.url] * 80))
    assert set(statuses) == {200, 503}  # no connection was reset before its answer was read


def status_of_one(url: str) -> int:
    """The answer to a request on a connection of its own."""
    return httpx2.post(f"{url}/recommend", json={"history": ["i1"]}, timeout=30).status_code


def test_an_error_in_the_log_does_not_leave_the_loops_handler(monkeypatch):
    loop, handler = asyncio.new_event_loop(), LoopErrors()
    log, warnings = logging.getLogger("uvicorn.error"), []
    full = OSError(errno.EMFILE, "Too many open files")

    def fail(*_args, **_options):
        raise full

    monkeypatch.setattr(log, "warning", warnings.append)
    for _ in range(3):
        handler(loop, {"message": "accept", "exception": full})
    (warning,) = warnings  # not one for each connection
    assert "raise `ulimit -n` or lower --connections" in warning
    monkeypatch.setattr(loop, "default_exception_handler", fail)
    monkeypatch.setattr(log, "exception", fail)
    handler(loop, {"message": "other", "exception": ValueError()})
    loop.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    ["--header-time=3", "--header-time=20 --connections=100000 --client-connections=100000"],
    ids=["limited", "full"],
)
def test_the_process_outlives_2000_half_open_connections(options, trained, tmp_path):
    """The first one refuses most of them; the second one comes to where it can open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2500:
        pytest.skip("the test itself may not open 2,000 connections")
    command = [sys.executable, "-m", "recbole_llamarec.serve", f"--checkpoint={trained.checkpoint}"]
    command.append(f"--data-path={trained.data_path}")
    shell = f'ulimit -n 1024 && exec "$@" {options} --port=0'
    log = tmp_path / "output.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            env=environment(CUDA_VISIBLE_DEVICES=""),
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2500), hard))
    try:
        line = re.compile(r"running on http://([\d.]+):(\d+)")
        wait_until(lambda: line.search(log.read_text()) or process.poll() is not None, 120)
        host, port = line.search(log.read_text()).groups()
        with ExitStack() as stack:
            for number in range(2000):
                half_open(stack, (host, int(port)), f"127.0.1.{1 + number % 40}")
            if "--connections" in options:
                wait_until(lambda: "No more files" in log.read_text(), 15)
            else:  # the headers' time is over
                wait_until(lambda: is_healthy(host, port), 20)
        wait_until(lambda: is_healthy(host, port), 30)
        url = f"http://{host}:{port}/recommend"
        assert httpx2.post(url, json={"history": ["i1"]}, timeout=30).status_code == 200
        assert process.poll() is None
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait(30)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def half_open(stack: ExitStack, address, source: str) -> None:
    """Begin a connection without waiting for the service, and send half a header if it has it."""
    connection = stack.enter_context(socket.socket())
    connection.bind((source, 0))
    connection.setblocking(False)
    connection.connect_ex(address)
    time.sleep(0.001)
    with suppress(OSError):  # it waits before a full process, or was refused
        connection.send(HALF)


def is_healthy(host: str, port: str) -> bool:
    try:
        return httpx2.get(f"http://{host}:{port}/health", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False
