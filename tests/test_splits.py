"""Evidence, masks and tables on every split, against each user's choices as the file has them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import titles
from runs import run_of

from recbole_llamarec.data.chronology import ChoiceRows, Chronology
from recbole_llamarec.data.seen import CHOSEN_BEFORE, seen_mask

N_USERS, N_ITEMS = 24, 50
FIELDS = ["user_id:token", "item_id:token", "timestamp:float"]
HISTORY = "item_id_list:token_seq"
BY_USER = {"group_by": "user", "order": "TO", "mode": "full"}
OVER_ALL = {"group_by": None, "order": "TO", "mode": "full"}
SPLITS = {
    "leave one out": BY_USER | {"split": {"LS": "valid_and_test"}},
    "validation alone": BY_USER | {"split": {"LS": "valid_only"}},
    "test alone": BY_USER | {"split": {"LS": "test_only"}},
    "ratio by user": BY_USER | {"split": {"RS": [0.5, 0.25, 0.25]}},
    "ratio over all": OVER_ALL | {"split": {"RS": [0.8, 0.1, 0.1]}},
    "time": BY_USER | {"split": {"TS": [0.6, 0.2, 0.2]}},
}


def choices(repeats: bool = False) -> pd.DataFrame:
    """A line for each choice, in order of time, users between each other."""
    generator = np.random.default_rng(5)
    lines = []
    for user in range(N_USERS):
        items = generator.permutation(N_ITEMS)[: generator.integers(6, 16)]
        items = np.tile(items[:4], 3) if repeats else items
        times = 1e9 + np.cumsum(generator.integers(200, 90_000, len(items)))
        lines += [(f"u{user}", f"i{item}", time) for item, time in zip(items, times, strict=True)]
    return pd.DataFrame(lines, columns=FIELDS).sort_values(FIELDS[2], ignore_index=True)


def settings_of(folder: Path, files: dict[str, pd.DataFrame], **changes) -> dict:
    """Settings of a run without a ranker on a data set, which is written."""
    data = folder / "data/own"
    data.mkdir(parents=True)
    for name, lines in files.items():
        lines.to_csv(data / f"own{name}.inter", sep="\t", index=False)
    items = pd.DataFrame({"item_id:token": [f"i{i}" for i in range(N_ITEMS)]})
    items.assign(**{"title:token_seq": titles(N_ITEMS)}).to_csv(
        data / "own.item", sep="\t", index=False
    )
    inter = [column.split(":")[0] for column in next(iter(files.values()))]
    return {
        **{"model": "LlamaRec", "dataset": "own", "data_path": str(folder / "data")},
        **{"checkpoint_dir": str(folder / "saved"), "show_progress": False},
        **{"load_col": {"inter": inter, "item": ["item_id", "title"]}},
        **{"ranking_method": "none", "evidence_items": 3, "evidence_window": 2},
        **{"rerank_candidates": 5, "MAX_ITEM_LIST_LENGTH": 3, "topk": [5]},
        **{
            "valid_metric": "MRR@5",
            "metrics": ["Recall", "MRR"],
            "retriever_config": {"epochs": 1},
        },
    } | changes


def tokens_of(dataset, ids) -> list[str]:
    return [str(token) for token in dataset.id2token(dataset.iid_field, np.asarray(ids))]


def assert_evidence_counts(run, sequences: list[list[str]]) -> None:
    """Each item's followers one and two steps behind, and nothing else, are counted."""
    expected: dict[tuple[str, str], float] = {}
    for items in sequences:
        for step in (1, 2):
            for pair in zip(items, items[step:], strict=False):
                expected[pair] = expected.get(pair, 0) + 1 / step
    dataset, (evidence,) = run.train.dataset, run.model.scorers.values()
    every = np.arange(1, dataset.item_num)
    names = tokens_of(dataset, every)
    counted = {
        (name, other): count
        for item, name in zip(every, names, strict=True)
        for other, count in zip(names, evidence.counts(item, every), strict=True)
        if count
    }
    assert counted == pytest.approx(expected)


def masked_items(run, loader) -> list[set[str]]:
    """What stands behind all others in each row, and is masked: the last of the retriever's."""
    rows, model = loader.dataset.inter_feat, run.model
    columns = [rows[field] for field in ("user_id", "item_id_list", CHOSEN_BEFORE)]
    mask = seen_mask(*columns[:2], model.chosen, model.n_items, columns[2])
    order = model.eval().propose(rows.to("cpu")).order.numpy()
    result = []
    for row, items in zip(mask.numpy(), order, strict=True):
        assert row[items[-row.sum() :]].all()  # the model masks them, the padding item too
        result.append(set(tokens_of(loader.dataset, np.flatnonzero(row)[1:])))
    return result


def targets_of(loader) -> list[tuple[str, str]]:
    dataset = loader.dataset
    users = dataset.id2token(dataset.uid_field, dataset.inter_feat[dataset.uid_field].numpy())
    items = tokens_of(dataset, dataset.inter_feat[dataset.iid_field])
    return [(str(user), item) for user, item in zip(users, items, strict=True)]


@pytest.mark.parametrize("name", SPLITS)
def test_training_counts_once_and_masks_hold_what_came_before(workdir, name):
    lines = choices().sample(frac=1, random_state=1)  # lines in any order
    run = run_of(settings_of(workdir, {"": lines}, eval_args=SPLITS[name]))
    of_user = lines.sort_values(FIELDS[2]).groupby(FIELDS[0])[FIELDS[1]].agg(list)
    in_training = pd.Series(dict.fromkeys(of_user.index, 0))
    for user, _ in targets_of(run.train):
        in_training[user] += 1
    known = [of_user[user][: n + 1] for user, n in in_training.items() if n]
    dataset = run.train.dataset
    assert_evidence_counts(run, known)
    assert len(run.model.seen.items) == sum(map(len, known))
    for loader in (run.valid, run.test):
        pairs = targets_of(loader) if len(loader.dataset) else []
        for (user, item), masked in zip(
            pairs, masked_items(run, loader) if pairs else [], strict=True
        ):
            assert masked == set(of_user[user][: of_user[user].index(item)])
    assert dataset.chosen.most() == max(map(len, of_user))


def test_sessions_are_users(workdir):
    lines = choices().rename(columns={FIELDS[0]: "session_id:token"})
    names = {"USER_ID_FIELD": "session_id", "eval_args": SPLITS["ratio over all"]}
    run = run_of(settings_of(workdir, {"": lines}, **names))
    of_session = lines.groupby("session_id:token")[FIELDS[1]].agg(list)
    in_training = pd.Series([user for user, _ in targets_of(run.train)]).value_counts()
    assert_evidence_counts(run, [of_session[own][: n + 1] for own, n in in_training.items()])


def ready_made(lines: pd.DataFrame, length: int, with_times: bool = True) -> pd.DataFrame:
    """RecBole's lines of a ready-made split, with windows of so many items, users together."""
    rows = []
    for user, own in lines.groupby(FIELDS[0]):
        items, times = own[FIELDS[1]].tolist(), own[FIELDS[2]].tolist()
        for i in range(1, len(items)):
            window = " ".join(items[max(0, i - length) : i])
            rows.append((user, items[i], times[i], window, i - len(items)))
    columns = [*FIELDS, HISTORY, "place"]
    return pd.DataFrame(rows, columns=columns).drop(columns=[] if with_times else FIELDS[2])


def ready_made_settings(folder: Path, parts: dict[str, pd.DataFrame], **changes) -> dict:
    files = {
        f".{name}": part.drop(columns="place").sample(frac=1, random_state=2)
        for name, part in parts.items()
    }
    given = {"benchmark_filename": list(parts), "alias_of_item_id": ["item_id_list"]}
    return settings_of(folder, files, **{**given, **changes})


@pytest.mark.parametrize("with_times", [True, False], ids=["with times", "without times"])
def test_shuffled_lines_of_a_ready_made_split_count_once(workdir, with_times):
    lines = choices()
    rows = ready_made(lines, 3, with_times)
    parts = {"train": rows[rows.place < -2], "valid": rows[rows.place == -2]}
    run = run_of(ready_made_settings(workdir, parts | {"test": rows[rows.place == -1]}))
    of_user = lines.groupby(FIELDS[0])[FIELDS[1]].agg(list)
    assert_evidence_counts(run, [items[:-2] for items in of_user])
    for loader, n_last in ((run.valid, 2), (run.test, 1)):
        for (user, _), masked in zip(targets_of(loader), masked_items(run, loader), strict=True):
            assert masked == set(of_user[user][:-n_last])


def test_ready_made_rows_are_in_the_order_of_their_exact_times(workdir):
    """A second apart, where float32 knows 64 of them, and where no window tells the order."""
    lines = choices(repeats=True)
    lines[FIELDS[2]] = 1e9 + lines.groupby(FIELDS[0]).cumcount()
    rows = ready_made(lines, 1)
    parts = {"train": rows[rows.place < -2], "valid": rows[rows.place == -2]}
    run = run_of(ready_made_settings(workdir, parts | {"test": rows[rows.place == -1]}))
    of_user = lines.groupby(FIELDS[0])[FIELDS[1]].agg(list)
    assert_evidence_counts(run, [items[:-2] for items in of_user])


def test_windows_that_do_not_overlap_are_no_neighbours(workdir):
    """Of each user the second and third choice, and the sixth behind the fourth and fifth."""
    lines = choices().groupby(FIELDS[0]).head(8)
    rows = ready_made(lines, 2)
    rows["place"] = rows.groupby(FIELDS[0]).cumcount() + 1
    parts = {"train": rows[rows.place.isin([1, 2, 5])], "valid": rows[rows.place == 6]}
    run = run_of(ready_made_settings(workdir, parts | {"test": rows[rows.place == 7]}))
    of_user = lines.groupby(FIELDS[0])[FIELDS[1]].agg(list)
    of_user = of_user[of_user.map(len) > 5]
    short = lines.groupby(FIELDS[0])[FIELDS[1]].agg(list).drop(of_user.index)
    assert_evidence_counts(
        run, [part for own in of_user for part in (own[:3], own[3:6])] + [own[:3] for own in short]
    )
    training = Chronology.of(ChoiceRows.of(run.train.dataset), run.train.dataset.user_num)
    assert len(training.sequences()) == 2 * len(of_user) + len(short)
    assert len(run.model.seen.items) == 6 * len(of_user) + 3 * len(short)


def test_a_file_that_is_validation_and_test_hides_no_target(workdir):
    rows = ready_made(choices(), 3)
    parts = {"train": rows[rows.place < -1], "test": rows[rows.place == -1]}
    changes = {"benchmark_filename": ["train", "test", "test"]}
    run = run_of(ready_made_settings(workdir, parts, **changes))
    assert masked_items(run, run.valid) == masked_items(run, run.test)
    for (_, item), masked in zip(targets_of(run.test), masked_items(run, run.test), strict=True):
        assert item not in masked


@pytest.mark.parametrize("model", ["LlamaRec", "LRURec"])
@pytest.mark.parametrize("is_ready_made", [False, True])
def test_cut_offs_beyond_the_catalogue_are_refused_before_training(workdir, model, is_ready_made):
    keys = {"topk": [5, N_ITEMS + 1], "model": model}
    if is_ready_made:
        rows = ready_made(choices(), 3)
        parts = {"train": rows[rows.place < -2], "valid": rows[rows.place == -2]}
        run = ready_made_settings(workdir, parts | {"test": rows[rows.place == -1]}, **keys)
    else:
        run = settings_of(workdir, {"": choices()}, **keys)
    if model == "LRURec":
        run = {key: value for key, value in run.items() if not key.startswith(("r", "ev"))}
    with pytest.raises(ValueError, match=rf"topk: \[5, {N_ITEMS + 1}\].*has {N_ITEMS}\."):
        started = run_of(run)
        started.trainer.fit(started.train, started.valid)
    assert not list(Path(run["checkpoint_dir"]).glob("*"))


def test_users_who_choose_again_are_counted_in_a_warning(workdir, caplog):
    """Each chooses four items three times over: every target has been chosen before."""
    caplog.set_level(logging.WARNING)
    run = run_of(settings_of(workdir, {"": choices(repeats=True)}))
    run.trainer.fit(run.train, run.valid, saved=False)
    result = run.trainer.evaluate(run.test, load_best_model=False)
    assert result["recall@5"] == 0
    said = [record.getMessage() for record in caplog.records]
    for part in ("validation", "test"):
        (warning,) = [text for text in said if f"{N_USERS} of {N_USERS} {part} rows" in text]
        assert "rerank_mask_seen: False" in warning
    caplog.clear()
    run = run_of(settings_of(workdir / "all", {"": choices(repeats=True)}, rerank_mask_seen=False))
    run.trainer.fit(run.train, run.valid, saved=False)
    assert run.trainer.evaluate(run.test, load_best_model=False)["recall@5"] > 0
    assert not [record for record in caplog.records if "hides" in record.getMessage()]
