"""What a run leaves in TensorBoard and Weights & Biases, read back, and in its journal."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from recbole.quick_start import run_recbole
from runs import run_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_llamarec.tuning.curve import TrainingCurve

EVERY_STEP = {"train_eval_steps": 1, "rerank_fusion": 0.5}  # two optimizer steps


def read_events(directory: Path) -> EventAccumulator:
    """The events of one TensorBoard run, which must have one file."""
    (file,) = directory.glob("events.out.tfevents.*")
    return EventAccumulator(str(file)).Reload()


def points(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


def test_each_stage_has_a_tensorboard_run_of_its_own(tiny_run):
    result = run_recbole(config_dict=tiny_run | EVERY_STEP)
    (directory,) = Path("log_tensorboard").iterdir()
    ranker, retriever = read_events(directory), read_events(directory / "retriever")

    assert set(ranker.Tags()["scalars"]) == set(retriever.Tags()["scalars"])
    assert set(points(ranker, "Loss/Train")) == {1, 2}  # optimizer steps
    assert all(loss > 0 for loss in points(ranker, "Loss/Train").values())
    assert set(points(ranker, "Vaild_score")) == {1, 2}
    assert max(points(ranker, "Vaild_score").values()) == pytest.approx(result["best_valid_score"])
    assert set(points(retriever, "Loss/Train")) == {0, 1, 2}  # epochs
    assert set(points(retriever, "Vaild_score")) == {0, 1, 2}

    (text,) = ranker.Tensors("Result/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| final: LRURec + verbalizer |" in table and "retrieved rows, " in table
    assert f"{result['test_result']['ndcg@10']:.4f}" in table
    of_settings = [
        read_events(file.parent).Scalars("hparam/best_valid_result")[0].value
        for file in directory.glob("[0-9]*/events.out.tfevents.*")
    ]
    assert of_settings == [pytest.approx(result["best_valid_score"])]  # RecBole's HPARAMS page


class RecordingWandb(ModuleType):
    """Stands in for the ``wandb`` package: keeps what RecBole's logger hands to it."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # by which it is found to be installed
        self.run: SimpleNamespace | None = None
        self.inits: list[dict] = []
        self.steps: dict[str, str] = {}
        self.rows: list[dict] = []

    def init(self, **options) -> None:
        self.run = SimpleNamespace(summary={})
        self.inits.append(options)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.steps[name] = step_metric

    def log(self, metrics: dict, commit: bool = True) -> None:
        self.rows.append(metrics)

    def curve(self, name: str) -> dict[float, float]:
        """Values of a metric by its step metric."""
        (step,) = [step for pattern, step in self.steps.items() if fnmatch(name, pattern)]
        return {row[step]: row[name] for row in self.rows if name in row}


@pytest.fixture
def wandb(monkeypatch) -> RecordingWandb:
    module = RecordingWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_each_stage_has_its_names_in_weights_and_biases(tiny_run, wandb):
    result = run_recbole(config_dict=tiny_run | EVERY_STEP | {"log_wandb": True})
    (options,) = wandb.inits  # one run for both stages, with the run's own settings
    assert options["config"]["model"] == "LlamaRec"

    assert set(wandb.curve("train/train_loss")) == {1, 2}
    assert max(wandb.curve("valid/ndcg@10").values()) == result["best_valid_score"]
    assert set(wandb.curve("retriever/train/train_loss")) == {0, 1, 2}
    assert set(wandb.curve("retriever/valid/ndcg@10")) == {0, 1, 2}

    summary = wandb.run.summary
    assert summary["eval/ndcg@10"] == result["test_result"]["ndcg@10"]  # RecBole's own name
    assert summary["eval/final_LRURec_verbalizer/ndcg@10"] == summary["eval/ndcg@10"]
    for stage in ("LRURec", "verbalizer"):
        assert 0 < summary[f"eval/{stage}/recall@10"] <= 1


def test_the_retriever_alone_leaves_no_curves_of_a_ranker(tiny_run, wandb):
    run_recbole(config_dict=tiny_run | {"ranking_method": "none", "log_wandb": True})
    assert wandb.rows and all(name.startswith("retriever/") for row in wandb.rows for name in row)
    stages = {name for name in wandb.run.summary if name.startswith("eval/") and "ndcg" in name}
    assert stages >= {"eval/ndcg@10", "eval/LRURec/ndcg@10"}
    assert not any("final" in name or "verbalizer" in name for name in stages)


def test_the_journal_has_the_curves_and_the_times_of_each_phase(tiny_run):
    run = run_of(tiny_run, train_eval_steps=1, rerank_fusion="auto")
    run.trainer.fit(run.train, run.valid)
    run.trainer.evaluate(run.test)
    journal = run.trainer.journal
    assert list(journal.seconds) == [
        *("loading the language model", "training the retriever", "tuning the ranker", "fusion"),
        *("test of the retriever", "test of all stages"),
    ]
    assert all(seconds > 0 for seconds in journal.seconds.values())
    assert list(journal.retriever.losses) == list(journal.retriever.scores) == [0, 1, 2]
    assert list(journal.ranker.losses) == list(journal.ranker.scores) == [1, 2]
    names = [stage.name for stage in run.trainer.report.stages]
    assert list(journal.validation) == names  # all stages, on the rows of the fit
    assert all(set(metrics) >= {"ndcg@5", "ndcg@10"} for metrics in journal.validation.values())


def test_the_best_of_equal_validations_is_the_last_whose_state_is_kept():
    curve = TrainingCurve(scores={1: 0.2, 2: 0.5, 3: 0.5, 4: 0.1})
    assert curve.best(bigger=True) == (3, 0.5) and curve.best(bigger=False) == (4, 0.1)
    assert TrainingCurve().best(bigger=True) is None
    assert TrainingCurve.from_state(curve.state()) == curve
