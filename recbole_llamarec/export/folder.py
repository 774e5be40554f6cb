"""The folder of an export: written whole, with checksums, and over nothing that is not its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

from recbole_llamarec.checksums import (
    SUMS,
    DamagedFileError,
    check_sums,
    unlisted_files,
)
from recbole_llamarec.export.description import ABOUT, ADAPTER, FORMAT, MERGED, description
from recbole_llamarec.export.load import BASE_FOLDER, Export
from recbole_llamarec.files import folder_written_whole

OPTION = "--to"
SCRIPT = "rank.py"


def require_own(directory: Path) -> None:
    """Refuse a folder whose files are not all an export's, as it wrote them.

    Raises:
        FileExistsError: something would be lost; names it.
    """
    if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
        return
    if fault := _foreign(directory):
        raise FileExistsError(
            f"{OPTION}: {str(directory)!r} is not touched: {fault}. Give a new or an empty folder."
        )


def _foreign(directory: Path) -> str | None:
    """What in a folder is no export's, in words."""
    if directory.is_symlink() or not directory.is_dir():
        return "it is no folder"
    try:
        about = json.loads((directory / ABOUT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return f"it holds no {ABOUT} of an export"
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        return f"its {ABOUT} is of another program"
    try:
        if not check_sums(directory):
            return f"it has no {SUMS}"
    except (DamagedFileError, FileNotFoundError) as error:
        return str(error)
    added = unlisted_files(directory)
    return f"{added[0]!r} is not of the export" if added else None


def write_folder(export: Export, directory: Path, merged: bool, card: dict[str, str]) -> None:
    """Write an export; the language model is not usable afterwards.

    Args:
        export: what is exported.
        directory: made with its parents; an export already there is replaced.
        merged: write the whole model with the adapter added to its weights, not the adapter.
        card: texts of further files by name.

    Raises:
        FileExistsError: the directory holds something else, which would be lost.
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError

    weights = MERGED if merged else ADAPTER
    about = json.dumps(description(export, weights), indent=1, ensure_ascii=False) + "\n"
    script = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
    texts = {**card, ABOUT: about, SCRIPT: script}
    with folder_written_whole(directory, OPTION, require_own) as staging:
        try:
            _write_weights(export, staging, merged)
        except SafetensorError as error:  # a full disk, too
            raise OSError(errno.EIO, str(error)) from error
        for name, text in texts.items():
            (staging / name).write_text(text, encoding="utf-8")
        for file in staging.rglob("*.safetensors"):  # they are written for their owner alone
            shutil.copymode(staging / ABOUT, file)


def _write_weights(export: Export, staging: Path, merged: bool) -> None:
    model: Any = export.ranker.model
    tokenizer = export.ranker.prompts.tokenizer
    tokenizer.save_pretrained(staging)
    if merged:
        model.merge_and_unload(safe_merge=True).save_pretrained(staging)
        return
    adapter = model.peft_config["default"]
    base = export.base
    # "./base" is no name on the hub, so that who does not load base/ hears of it.
    adapter.base_model_name_or_path = base.name if base.is_on_hub else f"./{BASE_FOLDER}"
    adapter.revision = base.revision
    adapter.inference_mode = True
    # The default of save_embedding_layers would ask the hub for the base model's config.
    model.save_pretrained(str(staging), save_embedding_layers=False)
    if not base.is_on_hub:
        model.unload().save_pretrained(staging / BASE_FOLDER)
        tokenizer.save_pretrained(staging / BASE_FOLDER)
