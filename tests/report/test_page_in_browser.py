"""The page of a run in a real browser."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("width", [390, 1280])
def test_it_loads_without_errors_requests_or_overflow(open_page, hostile, width):
    url = hostile.with_suffix(".html").as_uri()
    watched = open_page(url, width=width)
    page = watched.page
    for summary in page.locator("details > summary").all():
        summary.click()
    page.mouse.move(width / 2, 300)  # whatever a figure shows under the pointer
    assert watched.errors == [] and watched.requests == [url]
    assert watched.overflow == 0
    assert page.locator(".plotly-graph-div .main-svg").count() > 0
    for figure in page.locator(".plotly-graph-div").all():
        box = figure.bounding_box()
        assert 250 < box["width"] <= width and box["x"] >= 0


def test_markup_in_titles_does_nothing(open_page, hostile):
    page = open_page(hostile.with_suffix(".html").as_uri()).page
    assert page.evaluate("() => window.hurt") is None
    assert page.locator("img").count() == 0
    first = page.locator("details.user").first
    first.locator("summary").first.click()
    assert (
        '</script><script>window.hurt=1</script> & "x" <img'
        in first.locator("li").first.inner_text()
    )


def test_the_search_box_finds_users(open_page, hostile):
    page = open_page(hostile.with_suffix(".html").as_uri(), width=390).page
    users, count = page.locator("details.user"), page.locator("#search-count")
    n_users = users.count()
    assert count.inner_text() == f"{n_users} of {n_users}"
    page.locator("#search").fill("silent RIVER")  # any order, any case
    shown = [user for user in users.all() if user.is_visible()]
    assert 0 < len(shown) < n_users and count.inner_text() == f"{len(shown)} of {n_users}"
    for user in users.all():
        words = user.text_content().lower()
        assert user.is_visible() == ("silent" in words and "river" in words)
    page.locator("#search").fill("down")  # of the target, not of any candidate
    fell = page.locator("details.user > summary .down").count()
    assert 0 < fell < n_users and count.inner_text() == f"{fell} of {n_users}"
    page.locator("#search").press("Enter")  # stays on the page
    page.locator("#search").fill("no such title")
    assert count.inner_text() == f"0 of {n_users}"
    page.locator("#search").fill("")
    assert count.inner_text() == f"{n_users} of {n_users}"
