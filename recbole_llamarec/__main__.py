"""The command line of RecBole's ``run_recbole.py``, with LlamaRec and LRURec registered.

Importing it also lets runs write their report, where what that needs is installed: the processes
that a run over several devices starts import this module, too.
"""

from __future__ import annotations

import argparse

from recbole.quick_start import run

from recbole_llamarec import report
from recbole_llamarec.integration.known import property_files

if report.is_available():
    report.install()


def main() -> None:
    """Run one model on one data set; any ``--key=value`` is a RecBole setting."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate a RecBole model; --key=value sets any RecBole key.",
    )
    parser.add_argument("--model", "-m", default="LlamaRec", help="name of the model")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the data set")
    parser.add_argument(
        "--config_files", type=property_files, help="property files, in one argument"
    )
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine")
    parser.add_argument("--ip", default="localhost", help="address of the first machine")
    parser.add_argument("--port", default="5678", help="port on the first machine")
    parser.add_argument("--world_size", type=int, default=-1, help="processes on all machines")
    parser.add_argument("--group_offset", type=int, default=0, help="first rank on this machine")
    arguments, _ = parser.parse_known_args()
    run(
        arguments.model,
        arguments.dataset,
        config_file_list=arguments.config_files,
        nproc=arguments.nproc,
        world_size=arguments.world_size,
        ip=arguments.ip,
        port=arguments.port,
        group_offset=arguments.group_offset,
    )


if __name__ == "__main__":
    main()
