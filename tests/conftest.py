"""Small real objects for the tests: a data set of 40 users and a random two-layer Llama."""

from __future__ import annotations

import os
import random
import string
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import recbole_llamarec  # noqa: E402, F401

WORDS = "Red Blue Old New Lost Silent River Mountain House Night Day Return Secret Star".split()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(2)


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty working directory, so that RecBole's logs and checkpoints leave no trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test"])
    return tmp_path


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


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Directory of a random two-layer Llama with a byte-level BPE tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = ByteLevelBPETokenizer()
    labels = [f": {letter}" for letter in string.ascii_letters] * 20  # each becomes one token
    tokenizer.train_from_iterator(
        titles(200) + labels, vocab_size=600, special_tokens=["<|endoftext|>"]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(workdir, tiny_llama) -> dict:
    """Settings of a LlamaRec run of a few seconds on the small data set."""
    write_dataset(workdir / "data")
    return {
        "dataset": "tiny",
        "data_path": str(workdir / "data"),
        "checkpoint_dir": str(workdir / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]},
        "MAX_ITEM_LIST_LENGTH": 20,
        "llm_name_or_path": str(tiny_llama),
        "prompt_max_history": 5,
        "rerank_candidates": 8,
        "train_max_samples": 16,
        "train_batch_size": 8,
        "learning_rate": 1e-3,
        "retriever_config": {"epochs": 4, "train_batch_size": 16},
        "show_progress": False,
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "metrics": ["Recall", "MRR", "NDCG"],
        "state": "INFO",
    }
