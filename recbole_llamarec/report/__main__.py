"""``python -m recbole_llamarec.report``: a run's report again, from the files beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recbole_llamarec.report import INSTALL, is_available
from recbole_llamarec.report.page import write_page


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and print where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.report",
        description="Write the HTML report of a run again; no model is loaded.",
    )
    parser.add_argument("checkpoint", type=Path, help="saved/LlamaRec-….pth")
    parser.add_argument("--out", type=Path, help="HTML file; beside the checkpoint if left out")
    options = parser.parse_args(arguments)
    if not is_available():
        raise SystemExit(f"A report needs plotly, Jinja and pydantic; `{INSTALL}`.")
    try:
        print(write_page(options.checkpoint, options.out))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
