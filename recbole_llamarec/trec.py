"""``python -m recbole_llamarec.trec``: rankings of test rows in TREC's form."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recbole_llamarec.files import require_writable, written_whole
from recbole_llamarec.integration.checkpoints import load_data_and_model

TAG = "LlamaRec"


class RankedRow(NamedTuple):
    """The ranking of one test row.

    Attributes:
        query: the user's token; ``USER#2`` and so on for further rows of the same user.
        items: tokens, best first.
        target: token of the item that the user chose.
    """

    query: str
    items: list[str]
    target: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the final ranking of every test row, and the targets."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.trec",
        description="Write a trained LlamaRec's rankings of the test rows as a TREC run, and their "
        "targets as qrels.",
    )
    parser.add_argument("--checkpoint", required=True, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    parser.add_argument("--run", required=True, type=Path, help="file of the rankings")
    parser.add_argument("--qrels", required=True, type=Path, help="file of the targets")
    parser.add_argument("-k", type=int, help="items of each row; the candidates, or the most topk")
    options = parser.parse_args(arguments)
    try:
        for key in ("run", "qrels"):  # ranking may take long
            require_writable(getattr(options, key).parent, f"--{key}")
        config, model, _, _, _, test = load_data_and_model(options.checkpoint, options.data_path)
        if config["model"] != "LlamaRec":
            raise ValueError(
                f"{options.checkpoint!r} holds a {config['model']}; give one of LlamaRec."
            )
        k = options.k
        if k is None:
            k = max(model.settings.rerank_candidates, *config["topk"])
        if not 1 <= k < model.n_items:
            raise ValueError(f"-k: {k} must be from 1 to {model.n_items - 1}.")
        write_run(ranked_rows(model, test, k), options.run, options.qrels)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


@torch.no_grad()
def ranked_rows(model: Any, loader: Any, k: int) -> Iterator[RankedRow]:
    """Rank evaluation rows as RecBole's evaluator sees them.

    Args:
        model: a trained ``LlamaRec``.
        loader: RecBole's loader of the rows.
        k: most items of a row. Items that are masked are left out.

    Raises:
        ValueError: a token has white space, which separates the fields of TREC's form.
    """
    dataset = loader.dataset
    n_rows: Counter[str] = Counter()
    model.eval()
    for interaction, *_ in loader:
        interaction = interaction.to(model.device)
        n_open = model.propose(interaction).n_open.clamp(max=k).tolist()
        order = model.full_sort_predict(interaction).topk(k).indices.cpu()  # [B, k], no ties
        users, targets = interaction[model.USER_ID].cpu(), interaction[model.ITEM_ID].cpu()
        columns = [
            dataset.id2token(dataset.uid_field, users).tolist(),
            dataset.id2token(dataset.iid_field, order).tolist(),
            dataset.id2token(dataset.iid_field, targets).tolist(),
        ]
        for user, items, target, n in zip(*columns, n_open, strict=True):
            n_rows[user] += 1
            query = user if n_rows[user] == 1 else f"{user}#{n_rows[user]}"
            row = RankedRow(query, items[:n], target)
            for token in (query, target, *row.items):
                if len(token.split()) != 1:
                    raise ValueError(
                        f"The token {token!r} has white space, which separates the fields of "
                        "TREC's form. Give users and items other tokens."
                    )
            yield row


def write_run(rows: Iterator[RankedRow], run: Path, qrels: Path) -> None:
    """Write rankings and targets, both whole or none.

    A score is the number of places from the end of the longest ranking, so that no two of a row are
    equal: evaluators order by it, and break ties in ways of their own.

    Args:
        rows: of different queries.
        run: file of ``query Q0 item rank score tag``.
        qrels: file of ``query 0 item 1``.

    Raises:
        OSError: a file cannot be written.
    """
    ranked = list(rows)
    longest = max((len(row.items) for row in ranked), default=0)
    with (
        written_whole(run, "--run") as run_part,
        written_whole(qrels, "--qrels") as qrels_part,
        run_part.open("w", encoding="utf-8", newline="\n") as rankings,
        qrels_part.open("w", encoding="utf-8", newline="\n") as targets,
    ):
        for row in ranked:
            targets.write(f"{row.query} 0 {row.target} 1\n")
            for rank, item in enumerate(row.items, start=1):
                score = longest - rank + 1
                rankings.write(f"{row.query} Q0 {item} {rank} {score} {TAG}\n")


if __name__ == "__main__":
    main()
