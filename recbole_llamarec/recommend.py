"""``python -m recbole_llamarec.recommend``: what a trained LlamaRec recommends for histories."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from recbole_llamarec.histories import BATCH, PARQUET, batched, histories_of
from recbole_llamarec.recommend_ray import Workers, import_ray, recommend_shards
from recbole_llamarec.recommender import Recommendation, Recommender
from recbole_llamarec.results_file import ResultsFile
from recbole_llamarec.results_folder import ResultsFolder

ADDED = re.compile(r"(, (the|an?))?( \(\d{4}\))?$")  # what people leave out of a title


def main(arguments: Sequence[str] | None = None) -> None:
    """Recommend for one history on the command line, or for a file of them."""
    options = parse_arguments(arguments)
    try:
        if options.engine == "ray":
            recommend_in_shards(options)
            return
        results = None
        if options.histories:  # files are compared before the model is loaded, which takes longer
            checkpoint = Path(options.checkpoint)
            results = ResultsFile(options.out, checkpoint, options.histories, options.k, BATCH)
        recommender = Recommender.from_checkpoint(options.checkpoint, options.data_path)
        if results is not None:
            recommend_file(recommender, options.histories, results, options.k)
            return
        history = [resolve(recommender, name) for name in options.history]
        if options.candidates:
            candidates = [resolve(recommender, name) for name in options.candidates]
            result = recommender.rank(history, candidates)[: options.k]
        else:
            (result,) = recommender.recommend([history], options.k)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    print(as_lines(result) if options.format == "jsonl" else as_table(result))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.recommend", description=__doc__.split(": ", 1)[1]
    )
    parser.add_argument("--checkpoint", required=True, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--history", nargs="+", help="item tokens or titles, the oldest first")
    what.add_argument(
        "--histories",
        type=Path,
        help="file with one history a line, a JSON list of item tokens; for ray also a folder",
    )
    parser.add_argument("--candidates", nargs="+", help="rank these instead of the catalogue")
    parser.add_argument(
        "--out", type=Path, help="JSON lines, one for each of --histories; for ray a folder"
    )
    parser.add_argument("-k", type=int, help="items of each result (10; all of --candidates)")
    parser.add_argument("--format", choices=("table", "jsonl"), default="table")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    ray = parser.add_argument_group("with --engine ray")
    ray.add_argument(
        "--ray-address", help="of a cluster; RAY_ADDRESS, or a start here, if left out"
    )
    ray.add_argument("--workers", type=int, default=1, help="processes that rank, a model each")
    ray.add_argument("--cpus-per-worker", type=float, default=1)
    ray.add_argument("--gpus-per-worker", type=float, default=0, help="may be a fraction")
    options = parser.parse_args(arguments)
    require_fitting_engine(parser, options)
    if (options.histories is None) != (options.out is None):
        parser.error("--histories and --out go together")
    if options.histories and options.candidates:
        parser.error("--candidates ranks for one --history")
    if options.k is None:
        options.k = len(options.candidates) if options.candidates else 10
    if options.k < 1:
        parser.error(f"-k is {options.k}; it must be 1 or more")
    return options


def require_fitting_engine(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the command where an option is not of its engine."""
    if options.engine == "ray":
        if options.histories is None:
            parser.error("--engine ray ranks --histories; leave it out for one --history")
        return
    for name in ("ray_address", "workers", "cpus_per_worker", "gpus_per_worker"):
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is of --engine ray; add that")
    if options.histories and (options.histories.is_dir() or options.histories.suffix == PARQUET):
        parser.error("--histories: folders and Parquet are read by --engine ray; add that")


def resolve(recommender: Recommender, name: str) -> str:
    """The item token that a token or title stands for.

    A title may differ in case, and leave out the year in brackets and an article at its end; what
    is still not found is compared by similarity.

    Raises:
        ValueError: no item or several are meant; lists the nearest.
    """
    tokens, titles = recommender.tokens, recommender.model.item_texts
    if name in tokens[1:]:
        return name
    wanted = name.strip().lower()
    lowered = [title.lower() for title in titles]
    for matches in (
        [i for i, title in enumerate(lowered) if i and title == wanted],
        [i for i, title in enumerate(lowered) if i and ADDED.sub("", title) == wanted],
    ):
        if len(matches) == 1:
            return str(tokens[matches[0]])
        if matches:
            several = ", ".join(f"{tokens[i]}: {titles[i]}" for i in matches[:5])
            raise ValueError(f"{name!r} may be several items ({several}); give the token.")
    near = difflib.get_close_matches(wanted, lowered[1:], n=3, cutoff=0.6)
    alone = difflib.get_close_matches(wanted, near, n=2, cutoff=0.85)
    if len(alone) == 1:
        return str(tokens[lowered.index(alone[0], 1)])
    nearest = ", ".join(titles[lowered.index(title, 1)] for title in near) or "none is like it"
    raise ValueError(f"No item is called {name!r}; the nearest: {nearest}.")


def recommend_in_shards(options: argparse.Namespace) -> None:
    """Recommend for histories in shards, by workers of Ray.

    Raises:
        ImportError: Ray is not installed.
        ValueError, OSError: an option or a file cannot be used, or a worker failed.
    """
    import_ray()  # what is absent is found before files are read
    workers = Workers(options.workers, options.cpus_per_worker, options.gpus_per_worker)
    folder = ResultsFolder(options.out, Path(options.checkpoint), options.histories, options.k)
    recommender = Recommender.from_checkpoint(options.checkpoint, options.data_path)
    folder.check(recommender)
    data_path = Path(recommender.dataset.dataset_path).parent.absolute()
    del recommender  # this machine may have a worker, too, whose memory it is
    folder.begin()
    if folder.pending:
        load = partial(Recommender.from_checkpoint, folder.checkpoint, data_path)
        recommend_shards(folder, load, workers, options.ray_address)


def recommend_file(recommender: Recommender, histories: Path, results: ResultsFile, k: int) -> None:
    """Recommend for a file of histories; an interrupted run goes on behind its last whole batch.

    Memory does not grow with the file. All of it is read before anything is ranked, so that a bad
    line is not found after hours.

    Raises:
        ValueError: a line is no list of known items; names the line.
    """
    done = results.n_done
    for _ in histories_of(histories, recommender):
        pass
    lines = islice(histories_of(histories, recommender), done, None)
    with tqdm(initial=done, unit="history", ncols=100) as progress:
        for rows in batched(lines, BATCH):
            results.add(recommender.recommend(rows, k))
            progress.update(len(rows))
    if not results.n_histories:
        results.add(())  # they have a file of results all the same


def as_lines(result: Sequence[Recommendation]) -> str:
    """A result as JSON lines."""
    return "\n".join(
        json.dumps(asdict(item), ensure_ascii=False, allow_nan=False) for item in result
    )


def as_table(result: Sequence[Recommendation]) -> str:
    """A result for people."""
    rows = [
        (
            item.rank,
            item.item or "–",
            item.text,
            "–" if item.probability is None else f"{item.probability:.3f}",
            item.retriever_rank or "–",
        )
        for item in result
    ]
    headers = ("rank", "item", "", "probability", "rank by the retriever")
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
