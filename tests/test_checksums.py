"""Checksums: what is damaged is refused, what is another program's is read unchecked."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile

import pytest
import torch

from recbole_llamarec.checksums import (
    DamagedFileError,
    check_seal,
    check_sums,
    sealed,
    write_sums,
)

VALUE = {"weights": torch.arange(12.0), "name": "x"}


def archive_of(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_a_sealed_archive_is_an_archive_whose_comment_is_the_sha256_of_what_stands_before(tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(sealed(archive_of(VALUE)))
    assert check_seal(file)
    content = file.read_bytes()
    comment = zipfile.ZipFile(file).comment
    assert content.endswith(comment) and len(comment) == 88
    digest = hashlib.sha256(content[:-88]).hexdigest()
    assert comment == f"recbole-llamarec sha256 {digest}".encode()
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["weights"], VALUE["weights"]) and loaded["name"] == "x"


def test_each_flipped_bit_at_either_end_is_refused_or_takes_the_checksum_away(tmp_path):
    """Without its mark a file counts as unchecked, and what it holds is unharmed."""
    file = tmp_path / "x.pth"
    content = sealed(archive_of(VALUE))
    mark = range(len(content) - 88, len(content) - 64)
    for place in [*range(40), *range(len(content) - 130, len(content))]:
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            if place in mark:
                assert not check_seal(file)
            else:
                with pytest.raises(DamagedFileError, match="checksum differs"):
                    check_seal(file)


@pytest.mark.parametrize("content", [b"", b"short", archive_of(VALUE)])
def test_a_file_of_another_program_has_no_checksum(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert not check_seal(tmp_path / "x")


def test_only_an_archive_without_a_comment_is_sealed():
    for content in (b"", b"no archive", sealed(archive_of(VALUE))):
        with pytest.raises(ValueError, match="no zip archive without a comment"):
            sealed(content)


def test_the_list_of_a_folder_is_what_sha256sum_reads(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.safetensors").write_bytes(bytes(5))
    write_sums(tmp_path)
    assert check_sums(tmp_path)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)


def test_a_folder_of_another_program_is_not_checked(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    assert not check_sums(tmp_path)


def test_every_flipped_bit_in_a_folder_and_in_its_list_is_refused_with_its_name(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    write_sums(tmp_path)
    for file in list(tmp_path.iterdir()):
        content = file.read_bytes()
        for place in range(len(content)):
            for bit in range(8):
                flipped = bytearray(content)
                flipped[place] ^= 1 << bit
                file.write_bytes(flipped)
                with pytest.raises((DamagedFileError, FileNotFoundError), match=str(tmp_path)):
                    check_sums(tmp_path)
        file.write_bytes(content)
    assert check_sums(tmp_path)


def test_a_listed_file_that_is_gone_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    write_sums(tmp_path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileNotFoundError, match="no file 'a.json', which SHA256SUMS lists"):
        check_sums(tmp_path)
