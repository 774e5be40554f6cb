"""``python -m recbole_llamarec.export``: a trained LlamaRec for programs without this package."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_llamarec.export.card import card_files
from recbole_llamarec.export.folder import require_own, write_folder
from recbole_llamarec.export.load import load_export

DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write what the options ask for, and print where it is."""
    options = parse_arguments(arguments)
    try:
        require_own(options.to)  # before the model is loaded
        export = load_export(options.checkpoint, options.data_path, options.dtype)
        card = card_files(export, options.checkpoint, options.merged, options.license)
        write_folder(export, options.to, options.merged, card)
        print(options.to)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.export", description=__doc__.split(": ", 1)[1]
    )
    parser.add_argument("checkpoint", type=Path, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    parser.add_argument("--to", type=Path, required=True, help="folder that is written")
    parser.add_argument(
        "--merged", action="store_true", help="the whole model, its adapter added to its weights"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the weights; in float32 (the default) scores are this package's, in the others "
        "they differ by rounding",
    )
    parser.add_argument(
        "--license", help="identifier on the hub, for the card; the base model's if left out"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
