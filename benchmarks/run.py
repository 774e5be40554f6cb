"""Runs a suite, cell by cell, and writes its tables: ``python benchmarks/run.py SUITE --data DIR``.

A finished cell has its line in ``OUT/cells.jsonl`` and is not run again while its settings stay the
same; an interrupted suite goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from cell_lines import read_line
from page import latex, write_page
from results import Line, add_cell, read_cells, read_users
from suite import CELL_LINE, CELL_USERS, Cell, Suite, read_suite, retriever_file
from tables import rows_of, suite_groups
from tqdm import tqdm

HERE = Path(__file__).resolve().parent


class Runner:
    """Runs the cells of a suite that are not finished.

    Args:
        suite: the suite.
        data: folder of the atomic files (RecBole's ``data_path``).
        out: folder of results.
        work: folder of checkpoints, logs and unfinished cells.
        threads: threads of each cell's process.
    """

    def __init__(self, suite: Suite, data: Path, out: Path, work: Path, threads: int) -> None:
        self.suite, self.data, self.out, self.work = suite, data, out, work
        self.threads = threads
        self.failed: dict[str, Path] = {}
        self.processes: set[subprocess.Popen] = set()

    def results(self) -> dict[str, Line]:
        """The line of every finished cell of the suite, by id."""
        return self.suite.finished(read_cells(self.out))

    def open_cells(self, only: str = "") -> list[Cell]:
        """Cells that can be run now.

        Args:
            only: part of the names of the cells that are wanted. Where such a cell lacks its
                retriever's checkpoint, the cell that trains it takes its place.
        """
        results = self.results()
        cells = {cell.id: cell for cell in self.suite.cells(results)}
        ready = []
        for cell in cells.values():
            if cell.id in results or only not in cell.name:
                continue
            needed = cells.get(cell.retriever) if cell.retriever else None
            if needed and not retriever_file(self.work / needed.id).is_file():
                cell = needed  # results can be had without checkpoints; train it again
            if cell.id not in self.failed and cell not in ready:
                ready.append(cell)
        return ready

    def run(self, cell: Cell) -> None:
        """Run one cell in a process of its own, with its log in its work folder."""
        work = self.work / cell.id
        work.mkdir(parents=True, exist_ok=True)
        if (work / CELL_LINE).is_file():
            return  # finished when the suite was stopped, and not yet collected
        spec = {"cell": asdict(cell), "data": str(self.data)}
        (work / "spec.json").write_text(json.dumps(spec))
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        scripts = [str(HERE / "with_parent.py"), str(HERE / "cell.py")]
        command = [sys.executable, *scripts, str(work / "spec.json")]
        with (work / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # open for as long as this process is there
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=work,
                start_new_session=True,
            )
            self.processes.add(process)
            code = process.wait()
            self.processes.discard(process)
            process.stdin.close()  # type: ignore[union-attr]
        if code:
            self.failed[cell.id] = work / "log.txt"

    def collect(self, cell: Cell) -> None:
        """Add a finished cell to the results; one caller at a time."""
        work = self.work / cell.id
        users = work / CELL_USERS
        table = pd.read_csv(users, dtype=str, keep_default_na=False) if users.is_file() else None
        add_cell(self.out, read_line((work / CELL_LINE).read_text(encoding="utf-8")), table)
        (work / CELL_LINE).unlink()
        users.unlink(missing_ok=True)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Within, an interruption ends the cells that run, with all their processes."""
        try:
            yield
        finally:
            for process in list(self.processes):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)


def run_suite(runner: Runner, jobs: int, only: str, minutes: float | None) -> None:
    """Run open cells, ``jobs`` at a time, until none is left or the time is up."""
    start = time.time()
    running: dict[Future, Cell] = {}
    done = len(runner.results())
    with (
        tqdm(total=runner.suite.n_cells, initial=done, unit="cell", desc=runner.suite.name) as bar,
        ThreadPoolExecutor(jobs) as pool,
        runner.stopping(),
    ):
        while True:
            in_time = minutes is None or time.time() - start < 60 * minutes
            for cell in runner.open_cells(only) if in_time else []:
                is_new = cell.id not in {other.id for other in running.values()}
                if len(running) < jobs and is_new:
                    running[pool.submit(runner.run, cell)] = cell
            if not running:
                return
            bar.set_postfix_str(", ".join(cell.name for cell in running.values()))
            finished: set[Future] = wait(running, return_when=FIRST_COMPLETED).done
            for future in finished:
                cell = running.pop(future)
                future.result()
                if cell.id in runner.failed:
                    bar.write(f"{cell.name} failed; see {runner.failed[cell.id]}")
                else:
                    runner.collect(cell)
            results = runner.results()
            bar.update(len(results) - bar.n)
            write_page(runner.suite, results, runner.out)


def main() -> None:
    """Run a suite as the command line says."""
    parser = argparse.ArgumentParser(description="Run a benchmark suite; run again to go on.")
    parser.add_argument("suite", type=Path, help="YAML file, such as benchmarks/suites/paper.yaml")
    parser.add_argument("--data", type=Path, default=Path("dataset"), help="RecBole's data_path")
    parser.add_argument("--out", type=Path, help="results (default: benchmarks/results/<suite>)")
    parser.add_argument("--work", type=Path, help="checkpoints (default: saved/<suite>)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time")
    parser.add_argument("--threads", type=int, help="threads a cell (default: cores / jobs)")
    parser.add_argument("--only", default="", help="run only cells whose name contains this")
    parser.add_argument("--latex", type=Path, help="write the test results there as LaTeX, too")
    parser.add_argument("--minutes", type=float, help="start no cell after so many minutes")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the cells that run, too
    suite = read_suite(arguments.suite)
    runner = Runner(
        suite,
        arguments.data.resolve(),
        (arguments.out or HERE / "results" / suite.name).resolve(),
        (arguments.work or Path("saved") / suite.name).resolve(),
        arguments.threads or max(1, (os.cpu_count() or 1) // arguments.jobs),
    )
    try:
        read_users(runner.out)  # before hours of cells, whose users are added to it
        run_suite(runner, arguments.jobs, arguments.only, arguments.minutes)
        results = runner.results()
        write_page(suite, results, runner.out)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if arguments.latex:
        rows = rows_of(suite_groups(suite, results), "test")
        arguments.latex.write_text(latex(rows), encoding="utf-8")
    print(f"{len(results)} of {suite.n_cells} cells are finished; tables in {runner.out}")
    if runner.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
