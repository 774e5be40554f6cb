"""Rankings in TREC's form: other evaluators come to RecBole's figures."""

from __future__ import annotations

from pathlib import Path

import ir_measures
import numpy as np
import pytest
from helpers import checkpoint_of
from ir_measures import RR, R, nDCG
from recbole.quick_start import load_data_and_model, run_recbole
from recbole.utils import get_trainer
from runs import run_of

from recbole_llamarec.trec import RankedRow, main, ranked_rows, write_run

MEASURES = {"ndcg": nDCG, "recall": R, "mrr": RR}


def evaluated(checkpoint: Path, data_path: str) -> dict[str, float]:
    """RecBole's metrics of the test rows."""
    config, model, _, _, _, test = load_data_and_model(checkpoint, data_path)
    config["metric_decimal_place"] = 12
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return trainer.evaluate(test, load_best_model=False)


def written(checkpoint: Path, data_path: str, folder: Path, *more: str) -> dict[str, float]:
    """The same by trec_eval, from the files that the command writes."""
    run, qrels = folder / "a.run", folder / "a.qrels"
    main(
        ["--checkpoint", str(checkpoint), "--data-path", data_path, "--run", str(run)]
        + ["--qrels", str(qrels), *more]
    )
    measures = {f"{name}@{k}": of @ k for name, of in MEASURES.items() for k in (5, 10)}
    found = ir_measures.calc_aggregate(
        measures.values(),
        ir_measures.read_trec_qrels(str(qrels)),
        ir_measures.read_trec_run(str(run)),
    )
    return {name: found[measure] for name, measure in measures.items()}


def test_trec_eval_comes_to_recboles_metrics(trained, workdir):
    ours = evaluated(trained.checkpoint, trained.data_path)
    theirs = written(trained.checkpoint, trained.data_path, workdir)
    assert theirs == {name: pytest.approx(ours[name], abs=1e-6) for name in theirs}
    assert min(theirs.values()) > 0
    lines = [line.split() for line in (workdir / "a.run").read_text().splitlines()]
    assert len(lines) == 39 * 10 and {line[5] for line in lines} == {"LlamaRec"}
    assert [(line[3], line[4]) for line in lines[:10]] == [
        (str(rank), str(11 - rank)) for rank in range(1, 11)
    ]


def test_short_lists_come_to_the_same_and_a_run_can_be_candidates(tiny_run, workdir):
    generator = np.random.default_rng(0)
    rows = [
        f"{user} Q0 i{item} 1 {score} other"
        for user in range(2, 38)  # some users have no list
        for item, score in zip(
            generator.permutation(60)[: generator.integers(0, 40)],
            generator.normal(size=40),
            strict=False,
        )
    ]
    (workdir / "theirs.run").write_text("\n".join(rows) + "\n")
    del tiny_run["retriever_config"]
    settings = tiny_run | {
        "retriever": "file",
        "retriever_file": "theirs.run",
        "ranking_method": "none",
        "evidence_items": 3,
        "rerank_fusion": "auto",
    }
    run_recbole(config_dict=settings)
    checkpoint = checkpoint_of(workdir / "saved")
    ours = evaluated(checkpoint, tiny_run["data_path"])
    theirs = written(checkpoint, tiny_run["data_path"], workdir)
    assert theirs == {name: pytest.approx(ours[name], abs=1e-6) for name in theirs}
    assert min(theirs.values()) > 0
    own = {"valid": "theirs.run", "test": "a.run"}
    again = run_of(settings, retriever_file=own, evidence_items=0, metric_decimal_place=12)
    again.trainer.fit(again.train, again.valid, saved=False)
    result = again.trainer.evaluate(again.test, load_best_model=False)
    assert dict(result) == {name: pytest.approx(value, abs=1e-6) for name, value in ours.items()}


def test_further_rows_of_a_user_are_queries_of_their_own(settings_of_ratio):
    run = run_of(settings_of_ratio)
    rows = list(ranked_rows(run.model, run.test, 5))
    queries = [row.query for row in rows]
    assert len(set(queries)) == len(queries) == len(run.test.dataset)
    assert {"2", "2#2"} <= set(queries) and all(len(row.items) == 5 for row in rows)


@pytest.fixture
def settings_of_ratio(tiny_run) -> dict:
    """A split by ratio, in which users have several test rows."""
    split = {"split": {"RS": [0.4, 0.2, 0.4]}, "order": "TO", "group_by": "user", "mode": "full"}
    return tiny_run | {"eval_args": split, "ranking_method": "none"}


def test_tokens_with_white_space_are_refused(settings_of_ratio):
    run = run_of(settings_of_ratio)
    run.test.dataset.field2id_token["user_id"][1:] += " x"
    with pytest.raises(ValueError, match="has white space"):
        list(ranked_rows(run.model, run.test, 5))


def test_scores_fall_by_one_and_nothing_is_left_of_what_fails(tmp_path):
    rows = [RankedRow("u", ["a", "b"], "b"), RankedRow("v", ["c"], "d")]
    write_run(iter(rows), tmp_path / "a.run", tmp_path / "a.qrels")
    assert (tmp_path / "a.run").read_text() == (
        "u Q0 a 1 2 LlamaRec\nu Q0 b 2 1 LlamaRec\nv Q0 c 1 2 LlamaRec\n"
    )
    assert (tmp_path / "a.qrels").read_text() == "u 0 b 1\nv 0 d 1\n"
    with pytest.raises(OSError, match="--qrels"):
        write_run(iter(rows), tmp_path / "b.run", tmp_path / "none" / "b.qrels")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.qrels", "a.run"]


@pytest.mark.parametrize(
    ("more", "words"), [(["-k", "61"], "-k: 61 must be from 1 to 60"), (["-k", "0"], "-k: 0 must")]
)
def test_wrong_options_end_the_command(trained, workdir, more, words):
    with pytest.raises(SystemExit, match=words):
        written(trained.checkpoint, trained.data_path, workdir, *more)
