from __future__ import annotations

import os

import pytest

from recbole_llamarec.path_rules import FILE, PATH


@pytest.mark.parametrize(
    ("path", "is_path", "is_file"),
    [
        ("saved/run.pth", True, True),
        ("é/" + "x" * 255, True, True),
        (".", True, False),
        ("/", True, False),
        ("tests", True, False),
        ("é" * 128, False, False),  # 256 bytes
        ("ab/" * 1366, False, False),  # 4,098 bytes
        ("", False, False),
        ("a\0b", False, False),
        ("\ud800", False, False),
        (None, False, False),
        (5, False, False),
    ],
)
def test_what_a_path_and_a_files_path_may_be(path, is_path, is_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert (PATH.accepts(path), FILE.accepts(path)) == (is_path, is_file)


def test_a_path_behind_a_folder_that_cannot_be_read_may_be_a_file(monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", denied)
        is_file = FILE.accepts("closed/run.pth")
    assert is_file
