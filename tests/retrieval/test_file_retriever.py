"""Another recommender's candidates as the first stage of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from given import Given, given_candidates, with_file, write_given
from helpers import checkpoint_of, tiny_settings
from recbole.quick_start import load_data_and_model, run_recbole
from running_service import run as serve
from runs import METRICS, batch_of, order_of, run_of

from recbole_llamarec.evaluation.table import stage_means
from recbole_llamarec.evaluation.users_file import read_run_users
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.scoring.fusion import Fusion

K = 8


def best_first(given: Given, user: str, seen: set[str]) -> list[str]:
    own = {item: score for item, score in given.get(user, {}).items() if item not in seen}
    return sorted(own, key=own.__getitem__, reverse=True)


def rows_of(run, loader):
    """User, items seen, target and whole final order of each row, as tokens."""
    model, (interaction, targets) = run.model.eval(), batch_of(loader)
    tokens = loader.dataset.field2id_token
    users = tokens["user_id"][interaction["user_id"]]
    for row, order in enumerate(order_of(model.full_sort_predict(interaction))):
        history = interaction["item_id_list"][row][: interaction["item_length"][row]]
        seen = {str(token) for token in tokens["item_id"][history]}
        yield (
            *(str(users[row]), seen, str(tokens["item_id"][targets[row]])),
            [str(token) for token in tokens["item_id"][order]][:-1],
        )


def test_the_given_items_stand_first_and_a_target_not_given_last(tiny_run, workdir):
    given = given_candidates(0)
    run = run_of(with_file(tiny_run, write_given(workdir / "a.tsv", given)))
    n_missed = 0
    for user, seen, target, order in rows_of(run, run.test):
        expected = best_first(given, user, seen)
        assert order[: len(expected)] == expected
        if target not in expected:
            n_missed += 1
            assert order[-1] == target
        behind = [item for item in order[len(expected) :] if item != target]
        n_unseen = len([item for item in behind if item not in seen])
        assert seen.isdisjoint(behind[:n_unseen])
    assert n_missed > 5


def test_scorers_reorder_what_is_given_and_bring_nothing_else_in(tiny_run, workdir):
    given = given_candidates(0)
    run = run_of(with_file(tiny_run, write_given(workdir / "a.tsv", given)))
    run.model.fusion = Fusion.from_setting(100.0, ["evidence"])
    n_changed = n_few = 0
    for user, seen, _, order in rows_of(run, run.test):
        expected = best_first(given, user, seen)[:K]
        assert set(order[: len(expected)]) == set(expected)
        n_changed += order[: len(expected)] != expected
        n_few += len(expected) < K
    assert n_changed > 10 and n_few > 5


def test_log_probabilities_are_among_what_is_given(tiny_run, workdir):
    given = given_candidates(0)
    run = run_of(with_file(tiny_run, write_given(workdir / "a.tsv", given)))
    interaction, _ = batch_of(run.test)
    candidates = run.model.propose(interaction)
    tokens = run.test.dataset.field2id_token
    assert candidates.masked.any() and not candidates.masked.all()
    assert candidates.scores.isfinite().all()
    for row, user in enumerate(tokens["user_id"][interaction["user_id"]]):
        n_open = int(candidates.n_open[row].clamp(max=K))
        items = tokens["item_id"][candidates.items[row][:n_open]]
        scores = torch.tensor([given[str(user)][str(item)] for item in items] if n_open else [])
        exact = scores.log_softmax(0)
        assert torch.allclose(candidates.scores[row][:n_open], exact, atol=1e-6)


def test_each_part_has_its_own_table(tiny_run, workdir):
    parts = {"valid": given_candidates(1), "test": given_candidates(2)}
    files = {part: write_given(workdir / f"{part}.tsv", given) for part, given in parts.items()}
    run = run_of(with_file(tiny_run, files))
    for part, loader in (("valid", run.valid), ("test", run.test)):
        for user, seen, _, order in rows_of(run, loader):
            expected = best_first(parts[part], user, seen)
            assert order[: len(expected)] == expected


def test_rows_and_users_that_do_not_match_are_counted(tiny_run, workdir, caplog):
    more = "nobody\ti1\t1\n2\tnothing\t1\n3\tnothing\t1\n"
    file = write_given(workdir / "a.tsv", given_candidates(0), more)
    run_of(with_file(tiny_run, file))
    n_rows = len(Path(file).read_text().splitlines()) - 1
    assert f"3 of {n_rows} rows are left out" in caplog.text
    assert "2 of the data set's 40 users have no candidates" in caplog.text  # 5 and 40


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama):
    """A finished run whose language model decides, its result and its table, which is gone."""
    root = tmp_path_factory.mktemp("given")
    given = given_candidates(0)
    file = write_given(root / "a.tsv", given)
    changes = {"ranking_method": "verbalizer", "evidence_items": 0, "rerank_fusion": 2.0}
    settings = with_file(tiny_settings(root, tiny_llama), file, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        result = run_recbole(config_dict=settings | {"metric_decimal_place": 10})
    Path(file).unlink()
    return settings, result, checkpoint_of(root / "saved"), given


def test_recboles_metrics_are_those_of_the_users_table(finished):
    _, result, checkpoint, _ = finished
    users = read_run_users(checkpoint.with_suffix(".users.csv"))
    final = [name for name in users if name.startswith("rank:final: ")][0].removeprefix("rank:")
    means = stage_means(users, final)
    assert {name: result["test_result"][name] for name in METRICS} == pytest.approx(means)
    assert 0 < means["recall@10"] < 1 and list(checkpoint.parent.glob("*.file.pth")) == []
    without = users[users["user_id"].isin(["5", "40"])]
    assert len(without) == 2 and (without[[c for c in users if "@" in c]] == 0).all(axis=None)


def test_a_checkpoint_needs_no_table(finished, workdir):
    settings, _, checkpoint, given = finished
    _, model, _, _, _, test = load_data_and_model(str(checkpoint), settings["data_path"])
    interaction, _ = batch_of(test)
    candidates = model.eval().propose(interaction)
    tokens = test.dataset.field2id_token
    for row, user in enumerate(tokens["user_id"][interaction["user_id"]]):
        items = tokens["item_id"][candidates.items[row][: candidates.n_open[row]]]
        assert set(items.tolist()) <= set(given.get(str(user), {}))
    assert int(candidates.n_open.sum()) > 100


def test_recommendations_are_for_users_with_candidates(finished, workdir):
    settings, _, checkpoint, given = finished
    recommender = Recommender.from_checkpoint(checkpoint, settings["data_path"])
    user = max(given, key=lambda user: len(given[user]))
    (result,) = recommender.recommend([["i1", "i2"]], k=5, users=[user])
    assert {item.item for item in result} <= set(given[user]) - {"i1", "i2"}
    assert all(item.score is not None for item in result)
    few = min((own for own in given if given[own]), key=lambda own: len(given[own]))
    (result,) = recommender.recommend([["i1"]], k=59, users=[few])
    assert {item.item for item in result} <= set(given[few]) - {"i1"}
    with pytest.raises(ValueError, match="no candidates for user '5'"):
        recommender.recommend([["i1"]], users=["5"])
    with pytest.raises(ValueError, match="no candidates for users that are not named"):
        recommender.recommend([["i1"]])
    ranked = recommender.rank(["i1"], ["i4", "i9", "i2"])
    assert {item.item for item in ranked} == {"i4", "i9", "i2"}


def test_it_is_served_for_given_candidates(finished, workdir):
    settings, _, checkpoint, _ = finished
    running = serve(Recommender.from_checkpoint(checkpoint, settings["data_path"]))
    answers = running.recommend(["i1"]), running.rank(["i1"], ["i4", "i9"])
    running.stop()
    assert [answer.status_code for answer in answers] == [422, 200]
    assert "no candidates for users that are not named" in answers[0].json()["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"retriever_file": None}, "retriever_file: name the table"),
        ({"retriever_file": "none.tsv"}, "retriever_file: there is no file 'none.tsv'"),
        ({"retriever_file": "a.csv"}, "retriever_file: 'a.csv' must end with .tsv, .run"),
        ({"retriever_file": {"valid": "a.tsv"}}, "retriever_file: .* test must be there"),
        (
            {
                "retriever_file": {"valid": "a.tsv", "test": "a.tsv"},
                "eval_args": {"split": {"RS": [8, 1, 1]}, "group_by": "user", "order": "TO"},
            },
            "retriever_file: tables for valid and test need eval_args",
        ),
        ({"retriever": "LRURec"}, "retriever_file: 'a.tsv' is read with retriever: file"),
        ({"retriever_config": {"epochs": 3}}, "retriever_config: .* not. Leave it out"),
        ({"retriever_checkpoint": "a.pth"}, "retriever_checkpoint: .* not. Leave it out"),
        ({"train_candidates": "retriever"}, "train_candidates: retriever needs candidates"),
    ],
)
def test_keys_that_contradict_it_are_named(tiny_run, workdir, changes, error):
    write_given(workdir / "a.tsv", given_candidates(0))
    with pytest.raises(ValueError, match=error):
        run_of(with_file(tiny_run, "a.tsv", **changes))


def test_a_prompt_shows_given_candidates_alone(tiny_run, workdir, monkeypatch):
    """However few they are; a single one is not shown at all."""
    file = write_given(workdir / "a.tsv", given_candidates(8))
    changes = {"ranking_method": "verbalizer", "evidence_items": 0, "rerank_fusion": None}
    run = run_of(with_file(tiny_run, file, **changes))
    run.model.fusion = Fusion.from_setting(None, ["verbalizer"])
    ranker, shown = run.trainer.language_model.ranker, []
    encode = ranker.encode
    monkeypatch.setattr(ranker, "encode", lambda *row: shown.append(row[1]) or encode(*row))
    interaction, _ = batch_of(run.test)
    run.model.eval().full_sort_predict(interaction)
    candidates = run.model.propose(interaction)
    rows = zip(candidates.items.tolist(), candidates.n_open.tolist(), strict=True)
    expected = [items[:n] for items, n in rows if n > 1]
    assert sorted(shown) == sorted(expected)
    assert {len(items) for items in shown} > {3, K}
