"""Small OpenAI-compatible servers on loopback: with a real small model, or with set answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

MODELS = {"data": [{"id": "tiny", "max_model_len": 2048}]}


@dataclass
class Reply:
    """An answer: JSON, or bytes as they are, after some seconds; each byte after some more."""

    body: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    seconds_a_byte: float = 0.0


class StandIn:
    """What a server answers; subclasses answer questions by :meth:`complete`.

    Args:
        first: given to the first questions that are posted, before anything else.
    """

    def __init__(self, *first: Reply) -> None:
        self.first = list(first)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def reply(self, path: str, body: dict[str, Any] | None) -> Reply:
        if body is None:
            return Reply(MODELS) if path.endswith("/models") else Reply({}, 404)
        self.asked.append(body)
        return self.first.pop(0) if self.first else self.complete(body)

    def complete(self, body: dict[str, Any]) -> Reply:
        return Reply({"asked": len(self.asked)})


class TinyModel(StandIn):
    """Serves a model in the manner of a real server.

    Args:
        folder: of the model and its tokenizer.
        manner: vllm; old vllm, which does not know logprob_token_ids; llama.cpp; or openai, which
            refuses what it does not know and names tokens by their texts.
        most_top: largest ``logprobs``.
        lifted: token ids that the model is made sure of, by 50 nats.
        start: a token that is put before each prompt.
        tells_usage: whether answers count the prompt's tokens.
    """

    def __init__(
        self,
        folder: Path,
        manner: str = "vllm",
        most_top: int = 20,
        lifted: tuple[int, ...] = (),
        start: int | None = None,
        tells_usage: bool = True,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        super().__init__()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.manner, self.most_top, self.lifted = manner, most_top, list(lifted)
        self.start, self.tells_usage = start, tells_usage

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> Reply:
        known = {"model", "prompt", "max_tokens", "temperature", "logprobs", "logit_bias"}
        if self.manner == "openai" and (unknown := body.keys() - known):
            return Reply({"error": {"message": f"unknown: {sorted(unknown)}"}}, 400)
        if body["logprobs"] > self.most_top:
            return Reply({"error": {"message": f"logprobs: at most {self.most_top}"}}, 400)
        prompt = ([] if self.start is None else [self.start]) + body["prompt"]
        logits = self.model(torch.tensor([prompt])).logits[0, -1]  # [V]
        logits[self.lifted] += 50
        plain = logits.log_softmax(0)  # [V]
        for token, bias in body.get("logit_bias", {}).items():
            logits[int(token)] += bias
        behind = logits.log_softmax(0)  # [V]
        sampled = int(behind.argmax())
        usage = {"usage": {"prompt_tokens": len(prompt)}} if self.tells_usage else {}
        make = self._content if self.manner == "llama.cpp" else self._top
        logprobs = make(body, plain, behind, sampled)
        return Reply({"choices": [{"text": "", "logprobs": logprobs}]} | usage)

    def _content(self, body, plain, behind, sampled):
        """As llama.cpp: ids beside texts, probabilities behind the bias where they are wanted."""
        is_behind = body.get("post_sampling_probs", False)
        values = behind.exp() if is_behind else plain
        name = "prob" if is_behind else "logprob"
        top = values.topk(body["logprobs"]).indices.tolist()
        entries = [
            {"id": i, "token": self.tokenizer.decode([i]), name: float(values[i])}
            for i in top
            if not is_behind or values[i] > 0
        ]
        return {"content": [{"id": sampled, "top_probs" if is_behind else "top_logprobs": entries}]}

    def _top(self, body, plain, behind, sampled):
        """As vLLM: the wanted tokens or the most probable ones, before the bias."""
        named = body.get("logprob_token_ids") if self.manner == "vllm" else None
        wanted = named or plain.topk(body["logprobs"]).indices.tolist()
        by_id = body.get("return_tokens_as_token_ids", False)
        values = {
            f"token_id:{i}" if by_id else self.tokenizer.decode([i]): float(plain[i])
            for i in {sampled, *wanted}
        }
        return {"tokens": [""], "top_logprobs": [values]}


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """Serve on a free port of loopback; ``url`` is then where."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: dict[str, Any] | None) -> None:
            stand_in.headers.append(dict(self.headers))
            reply = stand_in.reply(self.path, body)
            time.sleep(reply.seconds)
            own = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(len(own))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(len(own)) if reply.seconds_a_byte else ():
                self.wfile.write(own[start : start + 1])
                self.wfile.flush()
                time.sleep(reply.seconds_a_byte)
            self.wfile.write(b"" if reply.seconds_a_byte else own)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """Whoever asked has gone."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
