"""``python -m recbole_llamarec.recommend``: what a trained LlamaRec recommends for histories."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from recbole_llamarec.recommender import Recommendation, Recommender
from recbole_llamarec.results_file import ResultsFile

BATCH = 64  # histories ranked at a time
EXCERPT = 60  # characters of a line that an error shows
ADDED = re.compile(r"(, (the|an?))?( \(\d{4}\))?$")  # what people leave out of a title


def main(arguments: Sequence[str] | None = None) -> None:
    """Recommend for one history on the command line, or for a file of them."""
    options = parse_arguments(arguments)
    try:
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
            result = recommender.rank(
                history, [resolve(recommender, c) for c in options.candidates]
            )
        else:
            (result,) = recommender.recommend([history], options.k)
    except (ValueError, OSError) as error:
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
        "--histories", type=Path, help="file with one history a line, a JSON list of item tokens"
    )
    parser.add_argument("--candidates", nargs="+", help="rank these instead of the catalogue")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each of --histories")
    parser.add_argument("-k", type=int, default=10, help="items of each result")
    parser.add_argument("--format", choices=("table", "jsonl"), default="table")
    options = parser.parse_args(arguments)
    if (options.histories is None) != (options.out is None):
        parser.error("--histories and --out go together")
    if options.histories and options.candidates:
        parser.error("--candidates ranks for one --history")
    return options


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
            ranked = recommender.recommend(rows, k)
            results.add(
                json.dumps([asdict(item) for item in result], allow_nan=False) for result in ranked
            )
            progress.update(len(rows))
    if not results.n_histories:
        results.add(())  # they have a file of results all the same


def histories_of(file: Path, recommender: Recommender) -> Iterator[list[str]]:
    """The histories of a file, one a line.

    Raises:
        ValueError: a line is no list of known items; names the line.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            history = read_history(line, number, file)
            try:
                recommender.ids_of(history)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {error}") from error
            yield history


def read_history(line: bytes | str, number: int, file: Path) -> list[str]:
    """One line's item tokens; a number stands for the token that is written so.

    Raises:
        ValueError: names the file and the line.
    """
    try:
        tokens = json.loads(line if isinstance(line, str) else line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}, line {number}: no JSON in UTF-8 ({error}).") from error
    if not isinstance(tokens, list) or not tokens:
        fault = "no list of item tokens, the oldest first"
    elif wrong := [t for t in tokens if isinstance(t, bool) or not isinstance(t, str | int)]:
        fault = f"{json.dumps(wrong[0])[:EXCERPT]} is no item token; write it in quotes"
    else:
        return [str(token) for token in tokens]
    raise ValueError(f"{file}, line {number}: {fault}. The line begins {excerpt(line)}.")


def excerpt(line: bytes | str) -> str:
    """The beginning of a line, to be printed."""
    text = line if isinstance(line, str) else line.decode(errors="replace")
    return ascii(text.strip()[:EXCERPT])


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of at most ``size`` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


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
