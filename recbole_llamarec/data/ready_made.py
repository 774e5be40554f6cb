"""Ready-made splits (``benchmark_filename``): histories that stand in the files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from recbole_llamarec.data.atomic_files import DataSetError

PADDING = ("0", "[PAD]")  # what lists are filled up with, where it is no item's id


def check_histories(
    files: Sequence[str], field: str, types: Mapping[str, str], aliases: Sequence[str] | None
) -> None:
    """Check that the rows of a ready-made split have histories, read as items.

    Args:
        files: their names, for messages.
        field: the column of the histories, from ``ITEM_ID_FIELD`` and ``LIST_SUFFIX``.
        types: by field, the types of the loaded columns.
        aliases: value of ``alias_of_item_id``.

    Raises:
        DataSetError: names the key and what to do.
    """
    if field not in types:
        raise DataSetError(
            f"load_col: {field!r}, the histories of a ready-made split (benchmark_filename), is no "
            f"loaded column of {', '.join(files)} (loaded: {', '.join(types)}). Name it in "
            f"load_col: {{inter: [..., {field}]}}, or have the split made by leaving "
            "benchmark_filename out."
        )
    if types[field] != "token_seq":
        raise DataSetError(
            f"benchmark_filename: the histories {field!r} are of type {types[field]}. Declare them "
            f"as {field}:token_seq in the head lines of {', '.join(files)}."
        )
    if field not in (aliases or ()):
        raise DataSetError(
            f"alias_of_item_id: {aliases!r} does not name {field!r}, so that the ids in a "
            "ready-made split's histories would be read as other items than the same ids "
            f"elsewhere. Set alias_of_item_id: [{field}]."
        )


def padding_in(items: Collection[str]) -> list[str]:
    """What stands in lists and is no item.

    Args:
        items: ids of the items that are targets or have a row of their own.
    """
    return [text for text in PADDING if text not in items]


def keep_in_histories(
    frame: pd.DataFrame, field: str, suffix: str, is_kept: Callable[[pd.Series], Any]
) -> int:
    """Remove items from histories, and what stands at their places in the row's other lists.

    Args:
        frame: interactions; its lists are replaced.
        field: the column of the histories.
        suffix: RecBole's ``LIST_SUFFIX``, which the names of lists end in.
        is_kept: tells of a series of items which ones stay.

    Returns:
        number of places removed.
    """
    histories = frame[field].tolist()
    lengths = np.array([len(row) for row in histories], dtype=np.int64)
    flat = np.concatenate([*histories, np.empty(0, dtype=object)])
    kept = np.asarray(is_kept(pd.Series(flat, dtype=object)), dtype=bool)
    if kept.all():
        return 0
    rows = np.split(kept, np.cumsum(lengths)[:-1])
    for name in frame.columns:
        lists = frame[name].tolist()
        if name != field and not _are_parallel(name, suffix, lists, lengths):
            continue
        shorter = np.empty(len(lists), dtype=object)
        for i, (values, keep) in enumerate(zip(lists, rows, strict=True)):
            shorter[i] = values[keep]
        frame[name] = shorter
    return int((~kept).sum())


def _are_parallel(name: str, suffix: str, lists: list, lengths: np.ndarray) -> bool:
    """Whether a column has a value for each item of each history."""
    return (
        name.endswith(suffix)
        and isinstance(lists[0], np.ndarray)
        and bool((np.array([len(values) for values in lists]) == lengths).all())
    )
