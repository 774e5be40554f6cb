"""The service's page in a real browser: a person picks items by typing and sees both lists."""

from __future__ import annotations

import pytest


@pytest.fixture
def page_of(start, open_page, recommender, monkeypatch):
    """Opens the page of a service one of whose titles is markup."""
    texts = list(recommender.model.item_texts)
    texts[1] = "Zz <img src=x onerror='window.hurt=1'><b>"
    monkeypatch.setattr(recommender.model, "item_texts", texts)
    running = start()
    return lambda **size: (running, open_page(running.url, **size))


def choose(page, text: str) -> None:
    page.fill("#query", text)
    page.locator("#found [role=option]").first.click()


def test_both_lists_are_shown_for_what_is_picked(page_of, recommender):
    running, watched = page_of(width=390)
    page = watched.page
    choose(page, recommender.model.item_texts[5])
    choose(page, "Zz <img")
    page.wait_for_selector("#reranked li")
    page.wait_for_function("document.querySelectorAll('#chosen li').length == 2")
    picked = [str(recommender.tokens[i]) for i in (5, 1)]
    expected = running.recommend(picked, k=10).json()["items"]
    page.wait_for_function(
        "text => document.querySelector('#reranked li').textContent.includes(text)",
        arg=expected[0]["text"],
    )
    assert page.locator("#retrieved li").count() == page.locator("#reranked li").count() > 0
    assert "Zz <img" in page.locator("#chosen").inner_text()
    assert page.evaluate("window.hurt") is None
    assert not watched.errors
    assert all(address.startswith(running.url) for address in watched.requests)
    assert watched.overflow == 0
