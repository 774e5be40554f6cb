"""``python -m recbole_llamarec.trec``: the final ranking of a run's test rows in TREC form.

With these two files ``trec_eval``, ``ir_measures`` and ``ranx`` evaluate a run. The run is also a
table for ``retriever: file``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_llamarec.files import written_whole
from recbole_llamarec.integration.checkpoints import load_data_and_model

TAG = "LlamaRec"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the run and its qrels."""
    options = parse_arguments(arguments)
    try:
        config, model, _, _, _, test = load_data_and_model(options.checkpoint, options.data_path)
        if config["model"] != "LlamaRec":
            raise ValueError(f"{options.checkpoint!r} holds a {config['model']}, no LlamaRec.")
        depth = options.depth or max(*config["topk"], model.settings.rerank_candidates)
        targets = []
        with (
            written_whole(options.qrels, "--qrels") as qrels_part,
            qrels_part.open("w", encoding="utf-8") as qrels,
        ):
            with (
                written_whole(options.run, "--run") as run_part,
                run_part.open("w", encoding="utf-8") as run,
            ):
                for query, target, items in rankings(model, test, depth):
                    targets.append(f"{query} 0 {target} 1\n")
                    for rank, item in enumerate(items, start=1):
                        run.write(f"{query} Q0 {item} {rank} {depth + 1 - rank} {TAG}\n")
            qrels.writelines(targets)  # behind the run, so that each error names its own file
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    n_rows = len(targets)
    print(f"Written: {options.run}, {options.qrels} ({n_rows} queries, at most {depth} items each)")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.trec",
        description="Writes the final ranking of a run's test rows, and their targets as qrels.",
    )
    parser.add_argument("--checkpoint", required=True, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    parser.add_argument("--run", type=Path, required=True, help="the ranking, such as out.run")
    parser.add_argument("--qrels", type=Path, required=True, help="the targets, such as out.qrels")
    parser.add_argument(
        "--depth",
        type=int,
        help="most items of a row (the greater of rerank_candidates and the greatest of topk)",
    )
    options = parser.parse_args(arguments)
    if options.depth is not None and options.depth < 1:
        parser.error(f"--depth is {options.depth}; it must be at least 1")
    if options.run.absolute() == options.qrels.absolute():
        parser.error(f"--run and --qrels are the same file, {str(options.run)!r}")
    return options


@torch.no_grad()
def rankings(model: Any, loader: Any, depth: int) -> Iterator[tuple[str, str, list[str]]]:
    """The final ranking of each row.

    Items that take no part (seen, or not given by ``retriever: file``) are left out.

    Args:
        model: a trained ``LlamaRec``.
        loader: RecBole's loader of evaluation rows.
        depth: most items of a row.

    Yields:
        the query, which is the user's token and from the user's second row on ``TOKEN#NUMBER``,
        which is no user's token; the target's token; and those of the items, best first.

    Raises:
        ValueError: a token has white space, which parts the fields of the form.
    """
    model.eval()
    dataset = loader.dataset
    users = dataset.field2id_token[dataset.uid_field]
    items = dataset.field2id_token[dataset.iid_field]
    names, counts = set(users), Counter[str]()
    for interaction, _, _, targets in loader:
        batch = interaction.to(model.device)
        proposed = model.propose(batch)
        scores: Tensor = model.reordered(batch, proposed)  # [B, N]
        order = scores.topk(min(depth, proposed.n_items)).indices  # [B, depth]
        rows = zip(
            *(interaction[dataset.uid_field].tolist(), targets.tolist()),
            *(order.tolist(), proposed.n_open.tolist()),
            strict=True,
        )
        for user, target, best, n in rows:
            query = _query(_field(users[user]), names, counts)
            yield query, _field(items[target]), [_field(items[item]) for item in best[:n]]


def _query(token: str, names: set[str], counts: Counter[str]) -> str:
    """A name for the next row of a user."""
    counts[token] += 1
    if counts[token] == 1:
        return token
    while (query := f"{token}#{counts[token]}") in names:
        counts[token] += 1
    return query


def _field(token: str) -> str:
    if token.split() != [token]:
        raise ValueError(
            f"The token {str(token)!r} is empty or has white space, which parts the fields of a "
            "TREC file. Rename it in the data set's files."
        )
    return str(token)


if __name__ == "__main__":
    main()
