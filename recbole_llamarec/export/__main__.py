"""``python -m recbole_llamarec.export``: a trained LlamaRec for programs without this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_llamarec.export.card import card_files
from recbole_llamarec.export.folder import require_own, write_folder
from recbole_llamarec.export.load import load_export
from recbole_llamarec.export.prompts import require_new, write_prompts
from recbole_llamarec.ranking.model.settings import DTYPES


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what the options ask for, and print where it is."""
    options = parse_arguments(arguments)
    try:
        if options.to:  # what is in the way is found out before the model is loaded
            require_own(options.to)
        if options.prompts:
            require_new(options.prompts)
        export = load_export(options.checkpoint, options.data_path, options.dtype)
        if options.prompts:
            print(f"{options.prompts}: {write_prompts(export, options.prompts)} prompts")
        if options.to:
            card = card_files(export, options.checkpoint, options.merged, options.license)
            write_folder(export, options.to, options.merged, card)
            print(options.to)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.export", description=__doc__.split(": ", 1)[1]
    )
    parser.add_argument("checkpoint", type=Path, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    parser.add_argument("--to", type=Path, help="folder that is written")
    parser.add_argument(
        "--prompts", type=Path, help="JSON lines: prompts of the test rows as token ids"
    )
    parser.add_argument(
        "--merged", action="store_true", help="the whole model, its adapter added to its weights"
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="float32",
        help="of the weights; in float32 (the default) scores are this package's, in the others "
        "they differ by rounding",
    )
    parser.add_argument(
        "--license", help="identifier on the hub, for the card; the base model's if left out"
    )
    options = parser.parse_args(arguments)
    if not (options.to or options.prompts):
        parser.error("give --to, --prompts or both")
    return options


if __name__ == "__main__":
    main()
