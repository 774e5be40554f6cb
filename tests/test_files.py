"""Files and folders appear whole or not at all, and what cannot be written is said in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from limits import files_of_at_most

from recbole_llamarec.checksums import DamagedFileError
from recbole_llamarec.files import (
    folder_written_whole,
    read_tensors,
    require_writable,
    save_tensors,
    written_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_and_its_folder_are_flushed_before_and_behind_the_rename(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def noted(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((path.name, (tmp_path / "x").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with written_whole(tmp_path / "x") as part:
        part.write_text("new")
    assert flushed == [("x.part", False), (tmp_path.name, True)]
    assert (tmp_path / "x").read_text() == "new"


def test_a_full_disk_leaves_the_former_file_and_says_which_key_and_why(tmp_path):
    file = tmp_path / "x.pt"
    save_tensors({"x": torch.ones(9)}, file)
    with files_of_at_most(2**14), pytest.raises(OSError) as raised:
        save_tensors({"x": torch.zeros(2**14)}, file)
    message = str(raised.value)
    assert f"checkpoint_dir: {str(file)!r} cannot be written: File too large" in message
    assert "What was saved before stays" in message and "give the same command again" in message
    assert torch.equal(read_tensors(file)["x"], torch.ones(9))
    assert names(tmp_path) == ["x.pt"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with (
            pytest.raises(FileExistsError, match=f"--out: '{path}' is no regular file"),
            written_whole(path, "--out"),
        ):
            pytest.fail("it was not refused")
    assert pipe.is_fifo() and folder.is_dir() and names(tmp_path) == ["folder", "pipe"]


def test_a_link_to_a_file_stays_and_its_file_is_replaced(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.parent.mkdir()
    real.write_text("before")
    link.symlink_to(real)
    with written_whole(link) as part:
        assert part.parent == real.parent  # the link may lead to another disk
        part.write_text("after")
    assert link.is_symlink() and real.read_text() == "after"
    assert names(tmp_path) == ["disk", "link"] and names(real.parent) == ["real"]


def test_an_error_of_what_computes_the_content_is_not_the_files(tmp_path):
    with (
        pytest.raises(ConnectionError, match="^the server does not answer$"),
        written_whole(tmp_path / "x"),
    ):
        raise ConnectionError("the server does not answer")
    assert names(tmp_path) == []


def test_of_files_in_one_another_the_one_that_fails_is_named(tmp_path):
    with (
        files_of_at_most(10),
        pytest.raises(OSError) as raised,
        written_whole(tmp_path / "outer", "--outer"),
        written_whole(tmp_path / "inner", "--inner") as part,
    ):
        part.write_text("too much for this disk")
    assert "--inner: " in str(raised.value) and "--outer" not in str(raised.value)


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "saved").write_text("notes")
    with pytest.raises(OSError, match=r"checkpoint_dir: .*saved.* cannot be written"):
        save_tensors({}, tmp_path / "saved" / "x.pt")
    with (
        pytest.raises(OSError, match=r"checkpoint_dir: .*saved/x.* cannot be written"),
        folder_written_whole(tmp_path / "saved" / "x"),
    ):
        pass
    for folder in ("saved", "saved/below"):
        with pytest.raises(OSError, match=f"checkpoint_dir: the folder '.*{folder}' cannot be"):
            require_writable(tmp_path / folder, "checkpoint_dir")
    assert (tmp_path / "saved").read_text() == "notes"


def test_a_folder_with_too_little_space_is_refused_with_both_numbers(tmp_path):
    require_writable(tmp_path / "saved", "checkpoint_dir", 2**20)
    assert names(tmp_path / "saved") == []
    with pytest.raises(OSError, match=r"MB free, and this run writes up to 1099511627776.0 MB"):
        require_writable(tmp_path / "saved", "checkpoint_dir", 2**60)


def test_a_folder_that_takes_no_byte_is_refused(tmp_path):
    with files_of_at_most(100), pytest.raises(OSError, match="cannot be written to: File too"):
        require_writable(tmp_path, "checkpoint_dir")
    assert names(tmp_path) == []


def test_tensors_are_read_with_their_checksum_and_not_without(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"x": torch.ones(3)}, file)
    with pytest.raises(DamagedFileError, match="no checksum"):
        read_tensors(file)


def test_a_folder_takes_its_place_whole_with_its_checksums(tmp_path):
    directory = tmp_path / "adapter"
    for content in ("old", "new"):
        with folder_written_whole(directory) as staging:
            (staging / "a").write_text(content)
    assert names(directory) == ["SHA256SUMS", "a"] and (directory / "a").read_text() == "new"
    with files_of_at_most(10), pytest.raises(OSError), folder_written_whole(directory) as staging:
        (staging / "a").write_text("too much for this disk")
    assert (directory / "a").read_text() == "new"
    assert names(tmp_path) == ["adapter"]


def test_a_link_to_a_folder_stays_and_its_folder_is_written_again_and_again(tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for content in ("a", "b", "c"):
        with folder_written_whole(link) as staging:
            (staging / "x").write_text(content)
        assert (real / "x").read_text() == content
    assert link.is_symlink() and names(tmp_path) == ["disk", "link"]
    assert names(real.parent) == ["real"]
