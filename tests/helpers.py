"""Small data that the tests make for themselves."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATASETS = Path(os.environ.get("RECBOLE_DATA", ROOT / "../shared/datasets"))


def environment(**variables: str) -> dict[str, str]:
    """Environment of a subprocess that imports the package from this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives to no connection until it is used.

    Linux gives those from 32768 on to whoever asks for any, while a process takes seconds to start.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as opened, suppress(OSError):
            opened.bind(("", port))
            return port


def checkpoint_of(folder: Path) -> Path:
    """The one checkpoint of LlamaRec in a folder, beside its retriever's and its adapter."""
    (file,) = [file for file in folder.glob("*.pth") if file.name.count(".") == 1]
    return file


WORDS = [
    "Red",
    "Blue",
    "Old",
    "New",
    "Lost",
    "Silent",
    "River",
    "Mountain",
    "House",
    "Night",
    "Day",
    "Return",
    "Secret",
    "Star",
]


def titles(count: int, seed: int = 0) -> list[str]:
    """Distinct made-up film titles."""
    generator = random.Random(seed)
    return [f"The {generator.choice(WORDS)} {generator.choice(WORDS)} {i}" for i in range(count)]


def write_dataset(
    root: Path,
    name: str = "tiny",
    n_users: int = 40,
    n_items: int = 60,
    untitled: int = 0,
    timestamps: bool = True,
    seed: int = 0,
) -> Path:
    """Write atomic files in which the next item often follows the last one by number.

    The first ``untitled`` items have no title; user 1 has a single interaction.
    """
    generator = random.Random(seed)
    folder = root / name
    folder.mkdir(parents=True)
    columns = ["user_id:token", "item_id:token"] + (["timestamp:float"] if timestamps else [])
    lines = ["\t".join(columns)]
    for user in range(1, n_users + 1):
        item, seen = generator.randrange(n_items), []
        for position in range(1 if user == 1 else generator.randint(6, 14)):
            while item in seen:
                item = (item + generator.choice([1, 1, 1, 2, 7])) % n_items
            seen.append(item)
            row = [str(user), f"i{item}"] + ([str(881250000 + position)] if timestamps else [])
            lines.append("\t".join(row))
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
    names = ["" if i < untitled else title for i, title in enumerate(titles(n_items))]
    rows = [f"i{i}\t{title}\t{1950 + i}" for i, title in enumerate(names)]
    head = "item_id:token\ttitle:token_seq\tyear:token"
    (folder / f"{name}.item").write_text("\n".join([head, *rows]) + "\n")
    return folder


def tiny_settings(root: Path, llama: Path) -> dict:
    """Settings of a LlamaRec run of a few seconds on the small data set, which it writes."""
    write_dataset(root / "data")
    return {
        "model": "LlamaRec",
        "dataset": "tiny",
        "data_path": str(root / "data"),
        "checkpoint_dir": str(root / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "MAX_ITEM_LIST_LENGTH": 20,
        "llm_name_or_path": str(llama),
        "llm_dtype": "float32",  # whatever the processor
        "ranking_method": "verbalizer",  # what most tests are of
        "prompt_max_history": 5,
        "rerank_candidates": 8,
        "rerank_fusion": None,  # the ranker alone
        "epochs": 1,
        "train_max_samples": 16,
        "train_batch_size": 8,
        "learning_rate": 1e-2,
        "retriever_config": {"epochs": 3, "train_batch_size": 16},
        "show_progress": False,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "metrics": ["Recall", "MRR", "NDCG"],
    }
