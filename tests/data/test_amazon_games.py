"""Video Games of Amazon 2014, from made-up raw files to a run by the documented commands."""

from __future__ import annotations

import runpy
from pathlib import Path

from helpers import ROOT, checkpoint_of

from recbole_llamarec import convert
from recbole_llamarec.evaluation.users_file import read_run_users

N_USERS, N_ITEMS, N_CHOSEN = 16, 16, 9


def write_raw_files(folder: Path) -> None:
    """Users choose items one behind the other; item 0 has no title, and user 0 chooses once."""
    folder.mkdir()
    ratings = [
        f"A{user},G{(user + step) % N_ITEMS},5.0,{1369699200 + 86400 * step}"
        for user in range(N_USERS)
        for step in range(N_CHOSEN if user else 1)
    ]
    titles = [f"Star &amp; Quest {item}" if item else "" for item in range(N_ITEMS)]
    items = [{"asin": f"G{i}", "title": title} for i, title in enumerate(titles)]
    (folder / "ratings_Video_Games.csv").write_text("\n".join(reversed(ratings)) + "\n")
    (folder / "meta_Video_Games.json").write_text("\n".join(map(repr, items)) + "\n")


def test_raw_files_become_a_run_with_the_property_file(workdir, monkeypatch, caplog):
    write_raw_files(workdir / "FOLDER")
    monkeypatch.setattr("sys.argv", ["convert", "amazon-2014", "FOLDER", "dataset/amazon-games"])
    convert.main()
    options = ["--retriever_config={'epochs': 1}", "--ranking_method=none", "--evidence_items=2"]
    options.append("--rerank_candidates=5")
    command = ["run_recbole.py", "--model=LlamaRec", "--dataset=amazon-games", *options]
    monkeypatch.setattr("sys.argv", command)
    caplog.set_level("INFO")
    runpy.run_path(str(ROOT / "run_recbole.py"), run_name="__main__")
    assert "MAX_ITEM_LIST_LENGTH = 50" in caplog.text  # of properties/dataset/amazon-games.yaml
    users = read_run_users(checkpoint_of(workdir / "saved").with_suffix(".users.csv"))
    last = {f"A{user}": f"G{(user + N_CHOSEN - 1) % N_ITEMS}" for user in range(1, N_USERS)}
    found = dict(zip(users["user_id"], users["item_id"], strict=True))
    assert set(found) == set(last) and "G0" not in found.values()
    assert all(found[user] == item for user, item in last.items() if item != "G0")
