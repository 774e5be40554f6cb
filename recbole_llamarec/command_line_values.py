"""How a mapping or a list is written on a command line, where RecBole reads Python alone."""

from __future__ import annotations

import ast
import re
import shlex
from typing import Any

# A text in quotes, which stays; or a word without: no number, and no part of one such as 1e-3.
_PARTS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.+/-])[A-Za-z_/~][\w./@-]*")
_CONSTANTS = {"true": "True", "false": "False", "null": "None", "~": "None"}
_PYTHON = {"True", "False", "None"}
_READ_BY_SHELL = set('"$`\\!')  # within double quotes


def remedy(name: str, value: Any) -> str:
    """What to write in the place of a text that looks like a mapping or a list.

    Args:
        name: the key.
        value: as it arrived, such as ``{learning_rate: 0.001}``, whose names are not quoted.

    Returns:
        a sentence behind a space; empty where the value is no such text, or the name no key's.
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "[") or not name.isidentifier():
        return ""
    written = _as_python(value)
    if written is None:
        return " On a command line, write it as Python: quote its texts and names, and the whole."
    quoted = shlex.quote(written) if set(written) & _READ_BY_SHELL else f'"{written}"'
    return f" On a command line, write --{name}={quoted}."


def _as_python(text: str) -> str | None:
    """A text in YAML's flow form as Python writes it; ``None`` where that is not sure."""
    quoted = _PARTS.sub(lambda part: _quoted(part[0]), text.strip())
    try:
        return repr(ast.literal_eval(quoted))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _quoted(part: str) -> str:
    part = _CONSTANTS.get(part, part)
    return part if part in _PYTHON or part[0] in "'\"" else repr(part)
