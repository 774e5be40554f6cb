"""Checksums of what is loaded as weights or state: a flipped bit is an error, not another model.

A file of ``torch.save`` is a zip archive, and its checksum stands in the archive's comment: it
takes its name together with what it is of, and other programs read the archive as before. A folder
has a file ``SHA256SUMS``, which ``sha256sum -c`` reads. Files of others have neither and are read
unchecked.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

SUMS = "SHA256SUMS"
_MARK = b"recbole-llamarec sha256 "
_LENGTH = len(_MARK) + 64  # bytes of the comment
_END_OF_ARCHIVE = b"PK\x05\x06"
_RESTORE = f"Restore a copy of the folder, or train again; remove {SUMS} if you have changed it."
_END_LENGTH = 22  # bytes of that record without a comment, whose length is its last field


class DamagedFileError(ValueError):
    """A file is not what was written."""


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed(archive: bytes) -> bytes:
    """Add the checksum of an archive, as its comment.

    Args:
        archive: what ``torch.save`` writes; it has no comment.

    Returns:
        the archive, the comment's length set, and the comment: a mark and the SHA-256, in
        hexadecimal, of all that stands before it.

    Raises:
        ValueError: it is no archive, or has a comment.
    """
    if archive[-_END_LENGTH:][:4] != _END_OF_ARCHIVE:
        raise ValueError("this is no zip archive without a comment")
    content = archive[:-2] + struct.pack("<H", _LENGTH)
    return content + _MARK + hashlib.sha256(content).hexdigest().encode()


def check_seal(file: Path) -> bool:
    """Compare a file with the checksum in it.

    Returns:
        whether it has one: not those of other programs, and of earlier versions.

    Raises:
        DamagedFileError: they differ; says so without the file's name.
    """
    with file.open("rb") as stream:
        n_bytes = file.stat().st_size - _LENGTH
        stream.seek(max(0, n_bytes))
        comment = stream.read(_LENGTH)
        if not comment.startswith(_MARK):
            return False
        digest = hashlib.sha256()
        stream.seek(0)
        while n_bytes and (block := stream.read(min(n_bytes, 2**20))):
            digest.update(block)
            n_bytes -= len(block)
    if digest.hexdigest().encode() != comment[len(_MARK) :]:
        raise DamagedFileError("its bytes are not those that were written: the checksum differs")
    return True


def write_sums(folder: Path) -> None:
    """Write the checksums of a folder's files, those of its folders too, into ``SHA256SUMS``."""
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in sorted(_files_of(folder))]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> bool:
    """Compare a folder's files with its ``SHA256SUMS``.

    Returns:
        whether it has that file.

    Raises:
        FileNotFoundError: a listed file is absent; names it.
        DamagedFileError: a file is another than the listed one; names it.
    """
    file = folder / SUMS
    if not file.is_file():
        return False
    there = _files_of(folder)
    for number, line in enumerate(_lines(file), 1):
        digest, _, name = line.partition("  ")
        if name not in there:
            raise FileNotFoundError(
                f"{folder} has no file {name!r}, which {SUMS} lists in line {number}. {_RESTORE}"
            )
        if sha256_of(folder / name) != digest:
            raise DamagedFileError(
                f"{folder / name} is damaged: its SHA-256 is not that of {file.name}. {_RESTORE}"
            )
    return True


def unlisted_files(folder: Path) -> list[str]:
    """Files of a folder that its ``SHA256SUMS`` does not list: what others have added."""
    listed = {line.partition("  ")[2] for line in _lines(folder / SUMS)}
    return sorted(_files_of(folder) - listed)


def _files_of(folder: Path) -> set[str]:
    """Names of a folder's files but the list of checksums, relative to it."""
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    return names - {SUMS}


def _lines(sums: Path) -> list[str]:
    return sums.read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")
