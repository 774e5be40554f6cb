"""Runs in TREC form: another tool's metrics of them are RecBole's."""

from __future__ import annotations

from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch
from given import given_candidates, with_file, write_given
from helpers import checkpoint_of, tiny_settings
from ir_measures import RR, R, nDCG
from limits import files_of_at_most
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer
from runs import batch_of, run_of

from recbole_llamarec import trec

MEASURES = {"ndcg@5": nDCG @ 5, "ndcg@10": nDCG @ 10, "recall@10": R @ 10, "mrr@10": RR @ 10}


@pytest.fixture(scope="module")
def of_file(tmp_path_factory, tiny_llama) -> tuple[Path, str]:
    """Checkpoint and data path of a run whose candidates are given, and too few of many users."""
    root = tmp_path_factory.mktemp("trec")
    file = write_given(root / "a.tsv", given_candidates(0))
    settings = with_file(tiny_settings(root, tiny_llama), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        run_recbole(config_dict=settings)
    return checkpoint_of(root / "saved"), settings["data_path"]


@pytest.fixture(params=["LRURec", "file"])
def finished(request) -> tuple[Path, str]:
    if request.param == "file":
        return request.getfixturevalue("of_file")
    trained = request.getfixturevalue("trained")
    return trained.checkpoint, trained.data_path


def write(checkpoint: Path, data_path: str, folder: Path, *options: str) -> tuple[Path, Path]:
    run, qrels = folder / "out.run", folder / "out.qrels"
    places = [f"--checkpoint={checkpoint}", f"--data-path={data_path}"]
    trec.main([*places, f"--run={run}", f"--qrels={qrels}", *options])
    return run, qrels


def test_another_tools_metrics_are_recboles(finished, workdir, capsys):
    run, qrels = write(*finished, workdir)
    of_tool = ir_measures.calc_aggregate(
        MEASURES.values(),
        ir_measures.read_trec_qrels(str(qrels)),
        ir_measures.read_trec_run(str(run)),
    )
    config, model, _, _, _, test = load_data_and_model(str(finished[0]), finished[1])
    config["metric_decimal_place"] = 12
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    expected = trainer.evaluate(test, load_best_model=False)
    for name, measure in MEASURES.items():
        assert of_tool[measure] == pytest.approx(expected[name], abs=1e-6)
    assert 0 < of_tool[R @ 10] < 1 and of_tool[nDCG @ 5] != of_tool[nDCG @ 10]
    n_rows = len(qrels.read_text().splitlines())
    assert n_rows == len(test.dataset) and f"({n_rows} queries" in capsys.readouterr().out


def test_scores_fall_and_nothing_seen_or_not_given_is_there(of_file, workdir):
    run, _ = write(*of_file, workdir, "--depth=30")
    lines = [line.split() for line in run.read_text().splitlines()]
    given, by_user = given_candidates(0), {}
    for user, q0, item, rank, score, tag in lines:
        assert (q0, tag) == ("Q0", "LlamaRec") and item in given[user]
        by_user.setdefault(user, []).append((int(rank), int(score)))
    assert all(
        own == [(rank, 31 - rank) for rank in range(1, len(own) + 1)] for own in by_user.values()
    )
    assert {"5", "40"}.isdisjoint(by_user) and max(map(len, by_user.values())) > 20


def test_a_run_is_a_table_of_candidates(of_file, tiny_run, workdir):
    run, _ = write(*of_file, workdir)
    again = run_of(with_file(tiny_run, str(run)))
    _, model, _, _, _, test = load_data_and_model(str(of_file[0]), of_file[1])
    (mine, _), (theirs, _) = batch_of(again.test), batch_of(test)
    proposed = again.model.propose(mine)
    tokens = again.test.dataset.field2id_token["item_id"], test.dataset.field2id_token["item_id"]
    order = model.eval().full_sort_predict(theirs).argsort(dim=1, descending=True)
    for row, n in enumerate(proposed.n_open.tolist()):
        own = tokens[0][proposed.order[row][:n]].tolist()
        assert own == tokens[1][order[row][:n]].tolist()
    assert torch.equal(proposed.n_open, model.propose(theirs).n_open.clamp(max=10))


def test_rows_of_one_user_are_queries_of_their_own(tiny_run):
    split = {"split": {"RS": [6, 2, 2]}, "group_by": "user", "order": "TO", "mode": "full"}
    run = run_of(tiny_run, eval_args=split)
    queries = [query for query, _, _ in trec.rankings(run.model, run.test, 3)]
    assert len(set(queries)) == len(queries) == len(run.test.dataset)
    assert any(query.endswith("#2") for query in queries)


def test_a_query_has_no_other_users_token(tiny_run):
    split = {"split": {"RS": [6, 2, 2]}, "group_by": "user", "order": "TO", "mode": "full"}
    run = run_of(tiny_run, eval_args=split)
    tokens = run.test.dataset.field2id_token["user_id"]
    several = np.flatnonzero(np.bincount(run.test.dataset.inter_feat["user_id"]) > 1)
    first, other = several[:2]
    run.test.dataset.field2id_token["user_id"] = np.array(tokens, dtype=object)
    run.test.dataset.field2id_token["user_id"][other] = f"{tokens[first]}#2"
    queries = [query for query, _, _ in trec.rankings(run.model, run.test, 3)]
    assert len(set(queries)) == len(queries) == len(run.test.dataset)
    own = [query for query in queries if query.split("#")[0] == tokens[first]]
    assert own[:2] == [tokens[first], f"{tokens[first]}#3"]
    assert f"{tokens[first]}#2#2" in own


def test_the_catalogue_is_put_into_order_once_a_batch(tiny_run, monkeypatch):
    run, batches = run_of(tiny_run), []
    propose = run.model.propose
    monkeypatch.setattr(run.model, "propose", lambda *a: batches.append(a) or propose(*a))
    assert len(list(trec.rankings(run.model, run.test, 3))) > len(batches) == len(run.test)


@pytest.mark.parametrize("error", [ConnectionError("no server"), ImportError("no pyarrow")])
def test_an_error_of_the_model_is_no_error_of_the_files(trained, workdir, monkeypatch, error):
    def fails(*_):
        raise error
        yield

    monkeypatch.setattr(trec, "rankings", fails)
    with pytest.raises(SystemExit) as raised:
        write(trained.checkpoint, trained.data_path, workdir)
    assert str(raised.value) == str(error) and not any(workdir.glob("out.*"))


@pytest.mark.parametrize(("option", "n_rows"), [("--run", 5), ("--qrels", 0)])
@pytest.mark.usefixtures("capsys")  # in memory: the bound holds for pytest's own files, too
def test_a_full_disk_names_the_file_that_it_is_under(trained, workdir, monkeypatch, option, n_rows):
    rows = [(f"u{number}", "i1", ["i1"] * n_rows) for number in range(30)]
    monkeypatch.setattr(trec, "rankings", lambda *_: iter(rows))
    with pytest.raises(SystemExit) as raised, files_of_at_most(200):
        write(trained.checkpoint, trained.data_path, workdir)
    message = str(raised.value)
    assert f"{option}: " in message and "cannot be written: File too large" in message
    assert message.count("cannot be written") == 1 and "goes on" not in message


def test_what_cannot_be_written_is_refused(trained, workdir, monkeypatch):
    run, qrels = workdir / "a.run", workdir / "a.qrels"
    checkpoint = f"--checkpoint={trained.checkpoint}"
    with pytest.raises(SystemExit):
        trec.parse_arguments([checkpoint, f"--run={run}", f"--qrels={run}"])
    with pytest.raises(SystemExit):
        trec.parse_arguments([checkpoint, f"--run={run}", f"--qrels={qrels}", "--depth=0"])
    with pytest.raises(SystemExit, match="no checkpoint"):
        trec.main(["--checkpoint=none.pth", f"--run={run}", f"--qrels={qrels}"])
    original = trec.rankings
    monkeypatch.setattr(trec, "rankings", lambda *given: original(*blank_token(*given)))
    with pytest.raises(SystemExit, match="'i 1' .* white space"):
        write(trained.checkpoint, trained.data_path, workdir)
    assert not any(workdir.glob("out.*"))


def blank_token(model, loader, depth):
    """The same, with a token that has a blank."""
    tokens = loader.dataset.field2id_token["item_id"]
    loader.dataset.field2id_token["item_id"] = ["i 1"] * len(tokens)
    return model, loader, depth
