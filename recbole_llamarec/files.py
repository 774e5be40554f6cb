"""Files that are written beside their name and renamed: a name never stands for half a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"  # ending of a file that is being written; a killed process may leave it


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Within, the file to write to; afterwards it has replaced ``file``."""
    part = file.with_name(f"{file.name}{PART}")
    yield part
    part.replace(file)
