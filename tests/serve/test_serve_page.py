"""The page in a real browser: films are picked by typing, and both lists are shown."""

from __future__ import annotations

import pytest
from running_service import run

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.scoring.fusion import Fusion

EVIL = "<img src=x onerror=hit=1>"


def pick(page, text: str, by_pointer: bool = False) -> None:
    """Type into the search and take the first title found, by the Enter key or by a click."""
    query = page.get_by_role("combobox")
    query.fill(text)
    page.get_by_role("option").first.wait_for()
    # only titles found for a text are selected; those shown before anything is typed are not
    page.wait_for_function(
        "text => document.querySelector('[aria-selected=true]')?.textContent.includes(text)",
        arg=text,
    )
    if by_pointer:
        page.get_by_role("option").first.click()
    else:
        query.press("Enter")


def listed(page, name: str) -> list[tuple[int, str]]:
    """Ranks and titles of a list."""
    rows = page.locator(f"#{name} li").all()
    return [
        (int(row.locator(".rank").inner_text()), row.locator(".title").inner_text()) for row in rows
    ]


@pytest.mark.parametrize("width", [390, 1280])
def test_two_films_are_picked_and_both_lists_are_shown(open_page, service, recommender, width):
    watched = open_page(service.url, width=width)
    page = watched.page
    for item in (5, 9):
        pick(page, recommender.texts[item], by_pointer=width == 390)
    page.get_by_text("moved.").wait_for()
    history = [str(recommender.tokens[item]) for item in (5, 9)]
    (expected,) = recommender.recommend([history], 8)
    by_retriever = sorted(expected, key=lambda item: item.retriever_rank)
    assert listed(page, "retrieved") == [(i.retriever_rank, i.text) for i in by_retriever]
    assert listed(page, "reranked") == [(i.rank, i.text) for i in expected]
    moves = [row.inner_text() for row in page.locator("#reranked .more > span:first-child").all()]
    for item, move in zip(expected, moves, strict=True):
        by = item.retriever_rank - item.rank
        assert move == (f"▲ {by}" if by > 0 else f"▼ {-by}" if by else "–")
    assert not page.locator("#notice").is_visible()
    page.locator("summary").click()
    assert f"Candidates: {by_retriever[0].text} (A) |" in page.locator("#prompt").inner_text()
    assert watched.overflow == 0
    assert watched.errors == []
    assert all(request.startswith(service.url) for request in watched.requests)


def test_what_is_picked_can_be_removed_and_the_keyboard_suffices(open_page, service, recommender):
    page = open_page(service.url).page
    query = page.get_by_role("combobox")
    query.press_sequentially(recommender.texts[5][:8])
    page.get_by_role("option").first.wait_for()
    count = page.get_by_role("option").count()
    for _ in range(count + 1):  # round and back to the second
        query.press("ArrowDown")
    second = page.locator("[aria-selected=true]").inner_text()
    query.press("Enter")
    assert page.locator("#chosen span").all_inner_texts() == [second]
    page.locator("#reranked li").first.wait_for()
    page.get_by_label(f"Remove {second}").click()
    assert page.locator("#chosen li").count() == 0
    assert not page.locator("#lists").is_visible()


def test_rows_of_one_film_are_marked_in_both_lists(open_page, service, recommender):
    page = open_page(service.url).page
    pick(page, recommender.texts[5])
    page.locator("#reranked li").nth(2).hover()
    marked = page.locator("li.same .title").all_inner_texts()
    assert len(marked) == 2
    assert marked[0] == marked[1]


def test_markup_in_a_title_is_text(open_page, trained):
    recommender = Recommender.from_checkpoint(trained.checkpoint, trained.data_path)
    recommender.model.item_texts[:] = [f"{EVIL}{n}" for n in range(61)]  # which the prompts share
    running = run(recommender)
    try:
        watched = open_page(running.url)
        page = watched.page
        pick(page, "<img")
        page.locator("#reranked li").first.wait_for()
        shown = [*listed(page, "retrieved"), *listed(page, "reranked")]
        assert len(shown) == 16
        assert all(EVIL in title for _, title in shown)
        assert EVIL in page.locator("#chosen span").inner_text()
        assert EVIL in page.locator("#prompt").text_content()
        assert page.evaluate("window.hit") is None
        assert page.locator("main img").count() == 0
        assert watched.errors == []
        assert f"{running.url}/x" not in watched.requests
    finally:
        running.stop()


def test_a_ranker_without_weight_is_said(open_page, service, recommender, monkeypatch):
    monkeypatch.setattr(recommender.model, "fusion", Fusion({"verbalizer": 0.0}))
    watched = open_page(service.url, width=390)
    page = watched.page
    pick(page, recommender.texts[5])
    page.get_by_text("has weight 0").wait_for()
    assert listed(page, "retrieved") == listed(page, "reranked")
    assert not page.locator("details").is_visible()
    assert watched.overflow == 0


def test_the_page_asks_for_the_token(open_page, recommender):
    running = run(recommender, token="sesame")
    try:
        page = open_page(running.url).page
        page.get_by_label("This service asks for its token").fill("sesame")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("60 items").wait_for()
        assert not page.locator("#token").is_visible()
        pick(page, recommender.texts[5])
        page.locator("#reranked li").first.wait_for()
    finally:
        running.stop()


def test_errors_of_the_service_are_shown(open_page, recommender):
    running = run(recommender, max_history=1)
    try:
        page = open_page(running.url).page
        pick(page, recommender.texts[5])
        pick(page, recommender.texts[9])
        page.get_by_text("at most 1 item").wait_for()
    finally:
        running.stop()


def test_the_documentation_works_by_itself(open_page, service):
    watched = open_page(service.url + "/docs", width=390)
    page = watched.page
    heading = page.get_by_role("heading", name="POST /recommend")
    section = page.locator("section").filter(has=heading)
    section.get_by_label("Body").fill('{"history": ["i1"], "k": 2}')
    section.get_by_role("button", name="Send").click()
    section.locator("pre", has_text="retriever_rank").wait_for()
    assert section.locator("pre").inner_text().startswith("200")
    assert page.locator("h2").all_inner_texts() == [
        "POST /recommend",
        "POST /rank",
        "POST /rerank",
        "GET /items",
        "GET /model",
        "GET /health",
        "GET /metrics",
    ]
    assert watched.overflow == 0
    assert watched.errors == []
    assert all(request.startswith(service.url) for request in watched.requests)
