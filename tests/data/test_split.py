"""The split's counts and digest, on the paper's data sets and on a small one."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from helpers import environment, write_dataset
from recbole.config import Config
from recbole.data import create_dataset

from recbole_llamarec.data.split import describe, prepare_split, split_text


def prepared(dataset: str, folder, **settings):
    config = Config(
        model="LlamaRec", dataset=dataset, config_dict={"data_path": str(folder), **settings}
    )
    return prepare_split(config, create_dataset(config))


COLUMNS = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}


def test_targets_are_each_users_last_two_items(workdir):
    write_dataset(workdir / "data")
    summary, (_, valid, test) = prepared("tiny", workdir / "data", load_col=COLUMNS)
    by_user: dict[str, list[str]] = {}
    for line in (workdir / "data/tiny/tiny.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        by_user.setdefault(user, []).append(item)
    by_user = {user: items for user, items in by_user.items() if len(items) > 2}
    expected = [f"test\t{user}\t{by_user[user][-1]}" for user in sorted(by_user)]
    expected += [f"valid\t{user}\t{by_user[user][-2]}" for user in sorted(by_user)]
    text = split_text(valid, test)
    assert text.splitlines()[1:] == expected
    assert summary.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_says_what_changes_the_split(workdir):
    write_dataset(workdir / "data")
    same = [prepared("tiny", workdir / "data", load_col=COLUMNS)[0] for _ in range(2)]
    assert same[0] == same[1]
    short = prepared("tiny", workdir / "data", load_col=COLUMNS, MAX_ITEM_LIST_LENGTH=3)[0]
    assert short.sha256 == same[0].sha256  # histories do not touch the targets
    other = prepared("tiny", workdir / "data", load_col=COLUMNS, user_inter_num_interval="[9,inf)")[
        0
    ]
    assert other.sha256 != same[0].sha256 and other.users < same[0].users


def test_command(workdir):
    write_dataset(workdir / "data")
    settings = workdir / "run.yaml"
    settings.write_text("load_col: {inter: [user_id, item_id, timestamp], item: [item_id, title]}")
    command = [sys.executable, "-m", "recbole_llamarec.split", "--dataset=tiny"]
    command += [f"--data_path={workdir / 'data'}", "--config_files=run.yaml", "--out=split.tsv"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=100)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256((workdir / "split.tsv").read_bytes()).hexdigest()
    assert done.stdout.splitlines()[-1] == f"sha256: {digest}"
    assert done.stdout.startswith("users: 40\n")


PAPER = {
    "ml-latest-small": (
        *(610, 3650, 90274, "147.99"),
        "3c3af05d52738ddf73623b9b1efbe38e83c8fdba22d5c08aabe4f6f150dd8763",
    ),
    "amazon-beauty": (
        *(22332, 12086, 198215, "8.88"),
        "02e9ead68d7a3d6536e5625f4245ed5ea43ca88470562893023e563518a0ac6e",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_table_2_of_the_paper(workdir, paper_data, name):
    """The counts are the paper's, which cuts Beauty's mean to 8.87; the digests are ours."""
    summary, _ = prepared(name, paper_data)
    users, items, interactions, mean_length, digest = PAPER[name]
    assert describe(summary).splitlines() == [
        *(f"users: {users}", f"items: {items}", f"interactions: {interactions}"),
        *(f"mean_length: {mean_length}", f"sha256: {digest}"),
    ]


@pytest.mark.slow
def test_classic_ml_100k_is_prepared_alike(workdir):
    config = Config(model="LlamaRec", dataset="ml-100k")
    summary, _ = prepare_split(config, create_dataset(config))
    assert (summary.users, summary.items, summary.interactions) == (943, 1349, 99287)
    assert config["MAX_ITEM_LIST_LENGTH"] == 200
