"""Which texts may be paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from recbole_llamarec.keys import TEXT, Rule

LONGEST_PATH, LONGEST_NAME = 4095, 255  # bytes, as on Linux


def _is_path(value: Any) -> bool:
    return (
        TEXT.accepts(value)
        and len(value.encode()) <= LONGEST_PATH
        and all(len(part.encode()) <= LONGEST_NAME for part in value.split("/"))
    )


PATH = Rule(
    "str",
    f"a path: a text, not empty, without U+0000, of at most {LONGEST_PATH} bytes and "
    f"{LONGEST_NAME} a part",
    _is_path,
)
FILE = Rule(
    "str",
    f"the path of a file, {PATH.allowed}",
    lambda value: _is_path(value) and Path(value).name != "" and not os.path.isdir(value),
)
