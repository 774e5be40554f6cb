"""A small suite, and lines and users as its finished cells would have them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import yaml
from stages import users_table
from suite import read_suite


def suite_file(folder: Path, llama: Path | str = "none") -> Path:
    """A grid of two LRURec cells, the better one at a second seed, and LlamaRec at one seed."""
    data = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "MAX_ITEM_LIST_LENGTH": 20,
        "rerank_candidates": 8,
    }
    content = {
        "metrics": ["NDCG", "Recall"],
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "seeds": [1, 2],
        "datasets": {"tiny": None},
        "models": [
            {
                "name": "LRURec",
                "grid": {"dropout_prob, embedding_dropout_prob": [0.1, 0.5]},
                "settings": {"epochs": 3, "train_batch_size": 16},
                "data_settings": data,
            },
            {
                "name": "LlamaRec",
                "retriever": "LRURec",
                "seeds": 1,
                "settings": {
                    "llm_name_or_path": str(llama),
                    "prompt_max_history": 5,
                    "train_max_samples": 8,
                    "train_batch_size": 8,
                },
                "data_settings": data,
            },
        ],
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def result(score: float) -> dict:
    return {"valid_score": score}


def small_suite(folder: Path):
    """The small suite, and its cells when all are finished with equal scores."""
    suite = read_suite(suite_file(folder))
    results: dict = {}
    for _ in range(3):
        cells = list(suite.cells(results))
        results = {cell.id: result(0.1) for cell in cells}
    return suite, cells


def line_of(cell, final: float, **changes) -> dict:
    """A finished cell's line with one metric."""
    retriever = {"LRURec": {"ndcg@10": 0.1}} if cell.model == "LlamaRec" else {}
    stages = {**retriever, "final": {"ndcg@10": final}}
    split = {"users": 3, "items": 9, "interactions": 12, "mean_length": 4.0, "sha256": "ab"}
    line = {"id": cell.id, **asdict(cell), "split": split, "valid_score": 0.1, "fusion": None}
    line |= {"test": stages, "retrieved": stages, "n_rows": 3, "n_retrieved": 1}
    line |= {"curve": [[1.0, 0.1]], "seconds": {"train": 60.0}, "threads": 1}
    return line | {"peak_memory_mb": 9, "machine": "a CPU", "versions": {}} | changes


def users_of(shift: float, names: str = "abc") -> pd.DataFrame:
    """The package's table of users, whose final metric lies above the retriever's."""
    before, final = [0.1, 0.2, 0.3], "final: LRURec + verbalizer"
    columns = {"user_id": list(names), "item_id": list("xyz"), "history_length": [1, 2, 3]}
    columns |= {"rank:LRURec": [4, 3, 2], "ndcg@10:LRURec": before}
    columns |= {f"rank:{final}": [3, 2, 1], f"ndcg@10:{final}": [b + shift for b in before]}
    columns |= {"first:verbalizer": [0.0, 1.0, None], "first_count:verbalizer": [7.0, 8.0, None]}
    return users_table(pd.DataFrame(columns), ["LRURec", final])
