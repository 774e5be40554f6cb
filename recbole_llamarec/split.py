"""``python -m recbole_llamarec.split``: counts of a prepared data set and its split's SHA-256."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset

from recbole_llamarec.data.split import describe, prepare_split, split_text
from recbole_llamarec.files import written_whole
from recbole_llamarec.integration.known import property_files


def main() -> None:
    """Print the counts and the digest; with ``--out`` also write the user-to-target file."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.split",
        description="Count a prepared data set and print the SHA-256 of its split; "
        "--key=value sets any RecBole key.",
    )
    parser.add_argument("--dataset", "-d", required=True, help="name of the data set")
    parser.add_argument(
        "--config_files", type=property_files, help="property files, in one argument"
    )
    parser.add_argument("--out", type=Path, help="file for each user's targets")
    arguments, _ = parser.parse_known_args()
    logging.disable(logging.WARNING)
    config = Config("LlamaRec", arguments.dataset, config_file_list=arguments.config_files)
    summary, (_, valid_data, test_data) = prepare_split(config, create_dataset(config))
    print(describe(summary))
    if arguments.out:
        text = split_text(valid_data, test_data)
        with written_whole(arguments.out, "--out") as part:
            part.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
