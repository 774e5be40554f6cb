"""Where a run's ranker helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import tiny_settings

from recbole_llamarec import analysis
from recbole_llamarec.analysis import by_group, by_place, describe, plot, read_users


@pytest.fixture(scope="module")
def users_file(tmp_path_factory, tiny_llama):
    """The table of a run with fusion."""
    from recbole.quick_start import run_recbole

    root = tmp_path_factory.mktemp("analysed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        run_recbole(config_dict=tiny_settings(root, tiny_llama) | {"rerank_fusion": 0.5})
    (file,) = (root / "saved").glob("*.users.csv")
    return file


def test_groups_add_up_to_all_rows(users_file):
    users = read_users(users_file)
    retrieved = users[users["retriever_rank"] <= 8]
    for column in ("retriever_rank", "history_length", "target_count"):
        table = by_group(retrieved, column, 10)
        assert table["rows"].sum() == len(retrieved)
        for stage, name in (("retriever", "retriever"), ("ranker", "ranker alone")):
            mean = np.average(table[f"{name}: ndcg"], weights=table["rows"])
            assert mean == pytest.approx(retrieved[f"{stage}_ndcg@10"].mean())


def test_places_of_first_choices_and_targets(users_file):
    users = read_users(users_file)
    retrieved = users[users["retriever_rank"] <= 8]
    table = by_place(retrieved, 8)
    assert table["target stands there"].sum() == pytest.approx(1)
    assert table["the ranker's first choice"].sum() == pytest.approx(1)
    # shown in the retriever's order, the target's place is its rank
    assert (retrieved["target_shown"] + 1 == retrieved["retriever_rank"]).all()
    chosen = retrieved["shown_first"] == retrieved["target_shown"]
    assert ((retrieved["ranker_rank"] == 1) == chosen).all()
    missed = users[users["retriever_rank"] > 8]
    assert missed["shown_first"].isna().all()


def test_more_candidates_than_the_run_had_are_refused(users_file):
    with pytest.raises(ValueError, match="--candidates is 20, but the run has ranked fewer"):
        analysis.main([str(users_file)])


def test_the_command_writes_tables_and_plots(users_file, tmp_path, capsys):
    out = tmp_path / "run.seed=1"
    analysis.main([str(users_file), "--candidates=8", f"--out={out}"])
    text = Path(f"{out}.md").read_text()
    assert text in capsys.readouterr().out
    for title in ("rank of the target", "items in the history", "By place", "Popularity"):
        assert title in text
    page = Path(f"{out}.html").read_text()
    assert "plotly" in page and "src=" not in page.split("<body>")[0]


def test_rows_without_any_hit_are_described(users_file):
    users = read_users(users_file)
    none = users[users["retriever_rank"] > 8]
    assert "0 of them" in describe(none, 8, 10)
    assert plot(none, 8, 10).data is not None


def test_a_wrong_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="users.csv"):
        read_users(tmp_path / "none.users.csv")
    file = tmp_path / "a.users.csv"
    pd.DataFrame({"user_id": [1], "retriever_rank": [1]}).to_csv(file)
    with pytest.raises(ValueError, match="llamarec_rank"):
        read_users(file)
