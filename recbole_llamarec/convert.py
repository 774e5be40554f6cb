"""``python -m recbole_llamarec.convert SOURCE RAW OUT``: raw downloads to atomic files."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_llamarec.data.convert.conversion import LINKS, convert
from recbole_llamarec.data.convert.raw_files import ConversionError


def main() -> None:
    """Convert as the command line says and print what became of each file."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.convert",
        description="Convert a raw download to RecBole's atomic files.",
        epilog="Downloads: " + "; ".join(f"{name}: {link}" for name, link in LINKS.items()),
    )
    parser.add_argument("source", choices=LINKS, help="where the files come from")
    parser.add_argument("raw", type=Path, help="folder of the raw files, plain or gzip")
    parser.add_argument("out", type=Path, help="folder of the data set, such as dataset/ml-1m")
    parser.add_argument("--overwrite", action="store_true", help="replace atomic files")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    try:
        reports = convert(
            arguments.source, arguments.raw, out, arguments.overwrite, show_progress=True
        )
    except (ConversionError, OSError) as error:
        raise SystemExit(f"Not converted: {error}") from None
    for report in reports:
        print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
