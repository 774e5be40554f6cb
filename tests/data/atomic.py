"""Data sets whose files a test writes out, for tests of how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data import create_dataset

ITEMS = "item_id:token\ttitle:token_seq\na\tAlpha\nb\tBeta\nc\tGamma\nd\tDelta\n"
# user 1 has the items a, b, c and d by time, user 2 d, c, b and a
INTER = "user_id:token\titem_id:token\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t{time}\n"
    for user, items in (("1", "abcd"), ("2", "dcba"))
    for time, item in enumerate(items, start=1)
)


def write(root: Path, **files: str | bytes) -> None:
    """Write files ``data/s/s.NAME``; underlines in names stand for full stops."""
    folder = root / "data" / "s"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else content.encode()
        (folder / f"s.{name.replace('_', '.')}").write_bytes(raw)


def read(root: Path, model: str = "LRURec", **config: Any):
    """The data set of the files, with all their columns and without filters."""
    settings = {
        "data_path": str(root / "data"),
        "load_col": None,
        "item_text_format": "{title}",
        "item_text_missing": "drop",
        "user_inter_num_interval": None,
        "item_inter_num_interval": None,
    }
    return create_dataset(Config(model=model, dataset="s", config_dict=settings | config))


def data_set(root: Path, inter: str | bytes = INTER, item: str | bytes = ITEMS, **config: Any):
    """Write a data set and read it."""
    write(root, inter=inter, item=item)
    return read(root, **config)


def texts_of(dataset, fallback: str | None = None) -> dict[str, str]:
    """Each item's text by its token."""
    tokens = dataset.field2id_token[dataset.iid_field].tolist()
    return dict(zip(tokens[1:], dataset.item_texts(fallback)[1:], strict=True))


def histories_of(dataset) -> list[tuple[str, list[str], str]]:
    """User, history and target of each row of a part of a split, as tokens."""
    rows = dataset.inter_feat
    columns = (rows[dataset.uid_field], rows[dataset.item_id_list_field], rows[dataset.iid_field])
    return [
        (
            str(dataset.id2token(dataset.uid_field, int(user))),
            dataset.id2token(dataset.iid_field, history[history > 0].numpy()).tolist(),
            str(dataset.id2token(dataset.iid_field, int(item))),
        )
        for user, history, item in zip(*columns, strict=True)
    ]


def last_items_of(dataset) -> dict[str, str]:
    """Each user's last item, the target of the test."""
    return {user: item for user, _, item in histories_of(dataset.build()[2])}
