"""Where a run's ranker helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import tiny_settings

from recbole_llamarec import analysis
from recbole_llamarec.analysis import (
    FIRST_COLOUR,
    GROUPINGS,
    LAST_COLOUR,
    by_group,
    by_place,
    colours_of,
    describe,
    distinct_stages,
    plot,
    read_users,
    retrieved_users,
    scorers_of,
    stages_of,
)


@pytest.fixture(scope="module")
def users_file(tmp_path_factory, tiny_llama):
    """The table of a run with two scorers and fusion."""
    from recbole.quick_start import run_recbole

    root = tmp_path_factory.mktemp("analysed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        settings = {"rerank_fusion": "auto", "evidence_items": 1}
        run_recbole(config_dict=tiny_settings(root, tiny_llama) | settings)
    (file,) = (root / "saved").glob("*.users.csv")
    return file


def test_stages_and_scorers_are_those_of_the_run(users_file):
    users = read_users(users_file)
    stages = stages_of(users)
    assert stages[:2] == ["LRURec", "LRURec + evidence"] and stages[-1].startswith("final: ")
    assert scorers_of(users) == ["evidence", "verbalizer"]


def test_groups_add_up_to_all_rows(users_file):
    users = read_users(users_file)
    retrieved = retrieved_users(users, 8)
    assert 0 < len(retrieved) < len(users)
    for column in GROUPINGS:
        table = by_group(retrieved, column, 10)
        assert table["rows"].sum() == len(retrieved)
        for stage in distinct_stages(retrieved):
            mean = np.average(table[f"{stage}: ndcg"], weights=table["rows"])
            assert mean == pytest.approx(retrieved[f"ndcg@10:{stage}"].mean())


def test_stages_that_order_as_another_one_are_shown_once():
    ranks = {"A": [1, 2], "A + b": [2, 1], "A + b + c": [2, 1], "b": [3, 1], "c": [1, 2]}
    users = pd.DataFrame({f"rank:{name}": own for name, own in ranks.items()})
    assert distinct_stages(users[["rank:A"]]) == ["A"]
    assert distinct_stages(users) == ["A", "A + b", "b", "c"]  # the last stays, whatever it is
    users["rank:final: A + b"] = [2, 1]
    assert distinct_stages(users) == ["A", "b", "final: A + b"]


def test_places_of_first_choices_and_targets(users_file):
    users = read_users(users_file)
    retrieved = retrieved_users(users, 8)
    for scorer in scorers_of(users):
        table = by_place(retrieved, scorer, 8)
        assert table["target stands there"].sum() == pytest.approx(1)
        assert table[f"first choice of {scorer}"].sum() == pytest.approx(1)
        # candidates are shown in the retriever's order: the target's place is its rank
        chosen = retrieved[f"first:{scorer}"] == retrieved["rank:LRURec"] - 1
        assert ((retrieved[f"rank:{scorer}"] == 1) == chosen).all()
    missed = users[users["rank:LRURec"] > 8]
    assert missed["first:verbalizer"].isna().all()


def test_the_first_and_the_last_stage_have_always_the_same_colour():
    for stages in (["a", "b"], list("abcdefghijkl")):
        colours = colours_of(stages)
        assert list(colours) == stages
        assert (colours["a"], colours[stages[-1]]) == (FIRST_COLOUR, LAST_COLOUR)
    assert colours_of(["a"]) == {"a": FIRST_COLOUR} and colours_of([]) == {}


def test_more_candidates_than_the_run_had_are_refused(users_file):
    with pytest.raises(SystemExit, match="--candidates is 20, but the run has ranked fewer"):
        analysis.main([str(users_file)])


def test_fewer_candidates_than_the_run_had_are_refused(users_file):
    """The places of first choices would not add up."""
    with pytest.raises(SystemExit, match="--candidates is 2, but the run has ranked more"):
        analysis.main([str(users_file), "--candidates=2"])


@pytest.mark.parametrize("option", ["--candidates=0", "--topk=0", "--topk=1000000000"])
def test_options_out_of_range_are_named(users_file, option):
    with pytest.raises(SystemExit, match=f"{option.split('=')[0]} is .* must be from 1 to 1000"):
        analysis.main([str(users_file), "--candidates=8", option])


def test_the_command_writes_tables_and_plots(users_file, tmp_path, capsys):
    out = tmp_path / "run.seed=1"
    analysis.main([str(users_file), "--candidates=8", f"--out={out}"])
    text = Path(f"{out}.md").read_text()
    assert text in capsys.readouterr().out
    for title in (
        "rank of the target",
        "items in the history",
        "By place among the candidates: evidence",
        "Popularity: the first choice of verbalizer",
    ):
        assert title in text
    page = Path(f"{out}.html").read_text()
    assert "plotly" in page and "src=" not in page.split("<body>")[0]


def test_rows_without_any_hit_are_described(users_file):
    users = read_users(users_file)
    none = users[users["rank:LRURec"] > 8]
    assert "0 of them" in describe(none, 8, 10)
    assert plot(none, 8, 10).data is not None


def test_a_wrong_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="users.csv"):
        read_users(tmp_path / "none.users.csv")
    file = tmp_path / "a.users.csv"
    pd.DataFrame({"user_id": [1], "retriever_rank": [1]}).to_csv(file)
    with pytest.raises(ValueError, match="rank:STAGE.*earlier version"):
        read_users(file)
    columns = {"rank:LRURec": [1], "history_length": [1], "target_count": [1]}
    pd.DataFrame(columns).to_csv(file)
    with pytest.raises(ValueError, match="two stages.*without a scorer"):
        read_users(file)
    assert len(read_users(file, needs_scorer=False)) == 1
