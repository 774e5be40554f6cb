"""The command: its options, its token, and the end of its process."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from helpers import environment
from running_service import wait_until

from recbole_llamarec.ranking.served.client import ServerError
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.scoring.fusion import Fusion
from recbole_llamarec.scoring.language_model import LanguageModel
from recbole_llamarec.serve.__main__ import TOKEN, main, parse_arguments, read_token
from recbole_llamarec.serve.hosts import is_loopback
from recbole_llamarec.serve.limits import Limits


def test_options_have_the_documented_defaults(capsys):
    options = parse_arguments(["--checkpoint=x", "--max-batch=3", "--deadline=0.5"])
    assert (options.host, options.port, options.token_file) == ("127.0.0.1", 8000, None)
    assert options.allow_host is None
    assert (options.max_batch, options.deadline, options.queue) == (3, 0.5, Limits().queue)
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "requests that wait; more are answered by 503 (64)" in shown


def test_limits_out_of_range_are_all_named():
    with pytest.raises(
        ValueError, match=r"max_candidates is 1.*\nqueue is 0: it must be at least 1"
    ):
        Limits(max_candidates=1, queue=0)
    with pytest.raises(ValueError, match=r"deadline is nan.*\nheader_time is inf"):
        Limits(deadline=float("nan"), header_time=float("inf"))
    with pytest.raises(ValueError, match=r"deadline is 0: .* at least 0.1.*\nheader_time is 0"):
        Limits(deadline=0, header_time=0)  # in no time nothing is answered


def test_the_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(" secret\n")
    monkeypatch.delenv(TOKEN, raising=False)
    assert read_token(None) is None
    assert read_token(file) == "secret"
    monkeypatch.setenv(TOKEN, "other")
    assert (read_token(None), read_token(file)) == ("other", "secret")
    file.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_token(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"--token-file: .*token' is no UTF-8 text"):
        read_token(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_loopback_is_told_from_other_addresses(host, expected):
    assert is_loopback(host) is expected


def test_without_the_extra_the_command_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "recbole_llamarec.serve.server", raising=False)
    with pytest.raises(SystemExit, match=r'pip install "\.\[serve\]"'):
        main(["--checkpoint=x"])


@pytest.mark.parametrize("error", [ServerError, FileNotFoundError, ImportError])
def test_a_language_model_that_cannot_be_loaded_ends_the_command(error, recommender, monkeypatch):
    def fail(_):
        raise error("llm_name_or_path: it is not there")

    monkeypatch.setattr(Recommender, "from_checkpoint", lambda *_: recommender)
    monkeypatch.setattr(LanguageModel, "ranker", property(fail))
    monkeypatch.setattr(recommender.model, "fusion", Fusion({"verbalizer": 0.0}))
    with pytest.raises(SystemExit, match="llm_name_or_path: it is not there"):
        main(["--checkpoint=a.pth"])


@pytest.mark.parametrize("option", ["--queue=0", "--token-file=nothing"])
def test_what_is_wrong_is_said_before_the_model_is_loaded(option):
    with pytest.raises(SystemExit, match="queue is 0|does not exist"):
        main(["--checkpoint=nothing.pth", option])


def ask_to_rank(address, pool: list[str]) -> socket.socket:
    """A connection on which a request has been sent, and whose answer waits to be read."""
    body = json.dumps({"history": [], "candidates": pool}).encode()
    head = f"POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection = socket.create_connection(address, timeout=60)
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return connection


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_flight(trained, recommender, tmp_path):
    command = [sys.executable, "-m", "recbole_llamarec.serve", f"--checkpoint={trained.checkpoint}"]
    command.append(f"--data-path={trained.data_path}")
    log = tmp_path / "output.txt"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--port=0", "--max-batch=1"],
            env=environment(CUDA_VISIBLE_DEVICES=""),
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        line = re.compile(r"running on http://([\d.]+):(\d+)")
        wait_until(lambda: line.search(log.read_text()) or process.poll() is not None, 120)
        found = line.search(log.read_text())
        assert found, log.read_text()
        host, port = found[1], int(found[2])
        assert host == "127.0.0.1"
        pool = recommender.tokens[1:].tolist()  # many windows, so that they take a while
        connections = [ask_to_rank((host, port), pool) for _ in range(8)]
        assert httpx2.get(f"http://{host}:{port}/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        expected = [item.item for item in recommender.rank([], pool)]
        for connection in connections:
            with connection, connection.makefile("rb") as file:
                status, _, body = file.read().partition(b"\r\n\r\n")
                assert status.startswith(b"HTTP/1.1 200"), status
                assert [item["item"] for item in json.loads(body)["items"]] == expected
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port))
    assert "Traceback" not in log.read_text()
