"""The browser of the tests notices what it is there to notice."""

from __future__ import annotations

import browser as browser_module
import pytest

PAGE = """<!doctype html><title>Test</title><body style="margin:0">
<div style="width:500px">wide</div>
<script>console.error("said"); fetch("file:///nothing").catch(() => 0); missing()</script>"""


def test_errors_requests_and_overflow_are_seen(open_page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(PAGE)
    watched = open_page(file.as_uri(), width=390)
    assert watched.requests[0] == file.as_uri()
    assert "said" in watched.errors
    assert any("missing is not defined" in error for error in watched.errors)
    assert watched.overflow == 110
    assert open_page(file.as_uri(), width=800).overflow == 0


@pytest.mark.parametrize(
    ("value", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_without_chromium_tests_skip_unless_it_must_be_there(monkeypatch, value, outcome):
    monkeypatch.setenv("CI_BROWSER", value)
    monkeypatch.setattr(browser_module.shutil, "which", lambda name: None)
    with pytest.raises(outcome, match="apt-get install chromium"):
        browser_module.chromium()
