"""A run's configuration in its report."""

from __future__ import annotations

from recbole_llamarec.report.record import read_record


def test_what_the_user_changed_stands_apart(trained):
    record = read_record(trained.checkpoint.with_suffix(".report.json"))
    changed = {setting.key: (setting.value, setting.default) for setting in record.changed}
    assert changed["rerank_candidates"] == ("8", "20")
    assert changed["rerank_fusion"] == ("~", "auto")
    assert changed["learning_rate"] == ("0.01", "0.0001")
    assert "valid_metric" not in changed  # was given, but is the default
    assert "model" not in changed and "dataset" not in changed
    assert list(changed) == sorted(changed)


def test_every_key_stands_in_its_group(trained):
    groups = read_record(trained.checkpoint.with_suffix(".report.json")).configuration
    assert groups["LlamaRec"]["rerank_candidates"] == "8"
    assert groups["LlamaRec"]["llm_revision"] == "~"
    assert groups["Training of the ranker"]["epochs"] == "1"
    assert groups["Training of the retriever, LRURec"]["epochs"] == "3"
    assert groups["Model of the retriever, LRURec"]["dropout_prob"] == "0.5"
    assert groups["Evaluation"]["topk"] == "[5, 10]"
    of_model = groups["Model of the retriever, LRURec"]
    assert not set(of_model) & {"rerank_candidates", "epochs", "metrics", "seed", "worker"}
