"""Which server is asked, and how patiently: the keys ``llm_http_…``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from recbole_llamarec.keys import (
    TEXT,
    Rule,
    check_fields,
    key,
    number,
    optional,
    value_error,
    whole,
)

BASE_URL = "OPENAI_BASE_URL"  # environment variable, as of OpenAI's own client
DEFAULT_URL = "http://127.0.0.1:8000/v1"  # vLLM's


def _is_url(value: Any) -> bool:
    if not TEXT.accepts(value) or not value.isascii() or not value.isprintable():
        return False
    try:
        parts = urlsplit(value)
        port_is_right = parts.port != 0
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port_is_right
        and parts.username is None
        and not (parts.query or parts.fragment or " " in value)
    )


URL = Rule(
    "str",
    "a URL such as http://127.0.0.1:8000/v1, without a user, a password, ? or # (the API key comes "
    "from the environment variable OPENAI_API_KEY alone)",
    _is_url,
)


@dataclass(frozen=True)
class HttpSettings:
    """The server that has the language model; each field is the YAML key ``llm_http_`` + its name.

    Raises:
        ValueError: naming every invalid key at once.
    """

    url: str | None = key(
        None,
        optional(URL),
        "Where the server's API begins, with llm_backend: http. ~ is the environment variable "
        f"OPENAI_BASE_URL, else {DEFAULT_URL}; a checkpoint's is not taken. The API key comes from "
        "the environment variable OPENAI_API_KEY alone.",
    )
    model: str | None = key(
        None, optional(TEXT), "The model's name on the server; ~ is the only one that it has."
    )
    concurrency: int = key(16, whole(1, 1024), "Prompts that the server is asked at a time.")
    timeout: float = key(
        120,
        number(above=0, at_most=1e6),
        "Seconds that one prompt may take, all repetitions included.",
    )
    parity: int = key(
        0,
        whole(0, 1000),
        "Prompts for which the server's scores are compared with those of llm_name_or_path at the "
        "start, which is loaded for that alone; where they differ, the run ends. 0 loads nothing.",
    )

    def __post_init__(self) -> None:
        check_fields(self, "llm_http_")

    @property
    def address(self) -> str:
        """Where the API begins.

        Raises:
            ValueError: the environment variable holds no URL.
        """
        if self.url is not None:
            return self.url
        url = os.environ.get(BASE_URL) or DEFAULT_URL
        if error := value_error(f"The environment variable {BASE_URL}", url, URL):
            raise ValueError(error)
        return url
