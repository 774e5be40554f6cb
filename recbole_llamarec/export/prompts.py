"""The prompts of the test rows as token ids, one JSON line each, for a batch engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recbole_llamarec.export.load import Export
from recbole_llamarec.files import written_whole

OPTION = "--prompts"


def require_new(file: Path) -> None:
    """Refuse a file that is there already.

    Raises:
        FileExistsError: it is; nothing has been touched.
    """
    if file.exists() or file.is_symlink():
        raise FileExistsError(
            f"{OPTION}: {str(file)!r} is there already; give another name, or remove it."
        )


def write_prompts(export: Export, file: Path) -> int:
    """Write the prompt of each test row with the retriever's candidates; return how many.

    Args:
        export: what is exported.
        file: new; see :func:`prompts` for its lines.

    Raises:
        FileExistsError: the file is there already.
        OSError: it cannot be written.
    """
    require_new(file)
    n_prompts = 0
    with written_whole(file, OPTION) as part, part.open("w", encoding="utf-8") as lines:
        for prompt in prompts(export):
            lines.write(json.dumps(prompt, ensure_ascii=False, allow_nan=False) + "\n")
            n_prompts += 1
    return n_prompts


@torch.no_grad()
def prompts(export: Export) -> Iterator[dict[str, Any]]:
    """The prompt of each test row that has candidates; no target is read.

    Yields:
        ``user`` and ``candidates`` as tokens, the latter in the order of the labels;
        ``retriever``, its log-probability of each candidate among the candidates, for the fusion;
        ``prompt_token_ids``; and ``label_token_ids``, one for each candidate.
    """
    model, ranker, dataset = export.model, export.ranker, export.test.dataset
    tokens = export.tokens
    for interaction, *_ in export.test:
        interaction = interaction.to(model.device)
        proposed = model.propose(interaction)
        rows = model.rows_of(interaction, torch.arange(len(interaction)))
        users = dataset.id2token(dataset.uid_field, rows.users.numpy())
        columns = users, rows.histories, proposed.items.tolist(), proposed.scores.tolist()
        for *row, n_open in zip(*columns, proposed.n_open.tolist(), strict=True):
            user, history, items, scores = row
            items = items[:n_open]  # where few candidates are given
            if not items:
                continue
            yield {
                "user": str(user),
                "candidates": [tokens[item] for item in items],
                "retriever": scores[:n_open],
                "prompt_token_ids": ranker.encode(history, items).context,
                "label_token_ids": list(ranker.verbalizer.token_ids[: len(items)]),
            }
