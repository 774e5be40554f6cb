"""Files and folders that are written beside their name and renamed: no name stands for a half.

What is written is flushed to the disk before it takes its name, so that this holds when the machine
stops, too.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from recbole_llamarec.checksums import DamagedFileError, check_seal, sealed, write_sums

PART = ".part"  # ending of a file that is being written; a killed process may leave it
REMEDY = "Have it take files again (space, rights), and give the same command again."


@contextmanager
def written_whole(
    file: Path, key: str = "checkpoint_dir", part: Path | None = None
) -> Iterator[Path]:
    """Within, the file to write to; afterwards it has replaced ``file``.

    Args:
        file: the name that it takes; what is there stays until then. A symbolic link stays, and
            the file that it leads to is replaced.
        key: YAML key or option that names the folder, for messages.
        part: the unfinished file, in the same folder; ``<file>.part`` if left out.

    Yields:
        ``part``. Where writing fails it is removed, and ``file`` is as before.

    Raises:
        FileExistsError: what is there is no regular file, as a device or a folder; it stays.
        OSError: it cannot be written; says where, why and what to do.
    """
    if os.path.exists(file) and not os.path.isfile(file):
        raise FileExistsError(
            f"{key}: {str(file)!r} is no regular file, and would be replaced by one; give another "
            "name."
        )
    part = part or file.with_name(f"{file.name}{PART}")
    if file.is_symlink():
        file = Path(os.path.realpath(file))  # its part beside it: it may lie on another disk
        part = file.with_name(part.name)
    try:
        with naming(file, key):
            yield part
            flush(part)
            part.replace(file)
            flush(file.parent)
    finally:
        with suppress(OSError):  # the folder may have gone, or be no folder
            part.unlink()


@contextmanager
def naming(path: Path, key: str) -> Iterator[None]:
    """Within, an ``OSError`` of writing says where, by which key and what to do.

    One without ``errno`` is not the system's: what computes the content has raised it, such as a
    language model that is absent. It stays as it is, and so does one that names a file within.
    """
    try:
        yield
    except OSError as error:
        is_named = isinstance(error.__cause__, OSError)
        if error.errno is None or is_named:
            raise
        raise OSError(
            error.errno,
            f"{key}: {str(path)!r} cannot be written: {error.strerror}. What was saved before "
            f"stays as it is. {REMEDY}",
        ) from error


def save_tensors(value: Any, file: Path, part: Path | None = None) -> None:
    """Save tensors and plain values with their checksum, whole or not at all.

    Args:
        value: what ``torch.load(weights_only=True)`` reads.
        file: where; its folder is made.
        part: as :func:`written_whole` takes it.

    Raises:
        OSError: it cannot be written.
    """
    archive = io.BytesIO()  # torch says nothing of the disk's errors
    torch.save(value, archive)
    with naming(file.parent, "checkpoint_dir"):
        file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file, part=part) as part:
        part.write_bytes(sealed(archive.getvalue()))


def read_tensors(file: Path) -> Any:
    """Read what :func:`save_tensors` wrote, onto the CPU.

    Raises:
        DamagedFileError: it has no checksum, or another.
        Exception: of any kind, where it is no archive of tensors and plain values.
    """
    if not check_seal(file):
        raise DamagedFileError("it has no checksum: an earlier version wrote it, or it is cut off")
    return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def folder_written_whole(
    directory: Path,
    key: str = "checkpoint_dir",
    require_own: Callable[[Path], None] | None = None,
) -> Iterator[Path]:
    """Within, write a folder's files; they take its place whole or not at all, with checksums.

    The names beside it do not change, so that what a killed run leaves is removed by the next one.

    Args:
        directory: made with its parents; a folder of the same files already there is replaced. A
            symbolic link to a folder stays, and the folder is replaced.
        key: YAML key or option that names where it is, for messages.
        require_own: raises ``FileExistsError`` where what is there must stay; if left out, any
            other file than those that are written must.

    Yields:
        An empty folder to write to.

    Raises:
        FileExistsError: the directory holds something else, which would be lost.
        OSError: it cannot be written.
    """
    directory, staging, replaced = _with_names_beside(directory)
    try:
        with naming(directory, key):
            directory.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(directory)
            staging.mkdir()
            yield staging
            write_sums(staging)
            for path in staging.rglob("*"):
                flush(path)
            flush(staging)
        if directory.exists():
            if require_own is not None:
                require_own(directory)
            else:
                _require_same_files(directory, staging, key)
        with naming(directory, key):
            if directory.exists():
                directory.rename(replaced)
            staging.rename(directory)
            flush(directory.parent)
    finally:
        remove_leftovers(directory)


def _require_same_files(directory: Path, staging: Path, key: str) -> None:
    if foreign := set(os.listdir(directory)) - set(os.listdir(staging)):
        raise FileExistsError(
            f"{key}: {directory} holds {sorted(foreign)}, which are not among the files that are "
            "to be written there; give a new or an empty directory."
        )


def remove_leftovers(directory: Path) -> None:
    """Remove what a process left that was killed in :func:`folder_written_whole`."""
    directory, staging, replaced = _with_names_beside(directory)
    if replaced.exists() and not directory.exists():  # killed between the two renames
        replaced.rename(directory)
    for folder in (staging, replaced):
        shutil.rmtree(folder, ignore_errors=True)


def _with_names_beside(directory: Path) -> tuple[Path, Path, Path]:
    """The folder itself, the one that is being written, and the one that it replaces."""
    directory = Path(os.path.realpath(directory))  # a link may lead to another file system
    hidden = f".{directory.name}"
    return (
        directory,
        directory.with_name(f"{hidden}{PART}"),
        directory.with_name(f"{hidden}.replaced"),
    )


def flush(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def require_writable(folder: Path, key: str, n_bytes: int = 2**12) -> None:
    """Make a folder and try to write there, so that it is not found out after hours.

    Args:
        folder: made with its parents.
        key: what names it, for the message.
        n_bytes: to be written there at most, as far as is known; with 0 the folder is only made.

    Raises:
        OSError: it cannot be made or written to, or has less space.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if n_bytes == 0:
            return
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**12))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"{key}: the folder {str(folder.absolute())!r} cannot be written to: "
            f"{error.strerror or error}. Name a folder that can be, or mend this one; nothing has "
            "been trained yet.",
        ) from error
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{key}: {str(folder)!r} has {free / 2**20:.1f} MB free, and this run writes up to "
            f"{n_bytes / 2**20:.1f} MB there. Free space, or name another folder; nothing has been "
            "trained yet.",
        )
