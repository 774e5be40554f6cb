"""Which server is asked, and how patiently: the keys ``llm_http_…``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from recbole_llamarec.keys import TEXT, Rule, check_fields, key, number, optional, whole


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

    url: str = key(
        "http://127.0.0.1:8000/v1",
        URL,
        "Where the server's API begins, with llm_backend: http. Its API key comes from the "
        "environment variable OPENAI_API_KEY alone.",
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
