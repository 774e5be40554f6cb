"""Made-up candidates of another recommender for the small data set, and runs that take them."""

from __future__ import annotations

import random
from pathlib import Path

Given = dict[str, dict[str, float]]  # scores by user and item


def given_candidates(seed: int) -> Given:
    """Some items of each of 40 users but the last, none of user 5, fewer than 8 of many."""
    generator = random.Random(seed)
    return {
        str(user): {
            f"i{item}": generator.uniform(-3, 3)
            for item in generator.sample(range(60), 0 if user == 5 else generator.randint(1, 40))
        }
        for user in range(1, 40)
    }


def write_given(file: Path, given: Given, more: str = "") -> str:
    """Write them in ``.tsv`` form, with further lines; gives the path as a key has it."""
    rows = [f"{user}\t{item}\t{s}" for user, own in given.items() for item, s in own.items()]
    file.write_text("\n".join(["user\titem\tscore", *rows]) + "\n" + more)
    return str(file)


def with_file(settings: dict, file: str | dict[str, str] | None, **changes) -> dict:
    """Settings of a run that takes them, with evidence as its only scorer."""
    cheap = {"ranking_method": "none", "evidence_items": 3, "rerank_fusion": "auto"}
    own = {"retriever": "file", "retriever_file": file, "retriever_config": None}
    return settings | cheap | own | changes
