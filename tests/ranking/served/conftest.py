"""Tests of a language model on a server."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """The environment's own key is sent to no stand-in."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
