"""The loop over optimizer steps: validations, the best adapter, and going on where it stopped."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from runs import language_model_of, pools_of
from torch.amp import GradScaler

from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.tuning.loop import TuningLoop, TuningProgress, step_seed
from recbole_llamarec.tuning.plan import TuningPlan
from recbole_llamarec.tuning.samples import Samples


class FewSamples:
    """Samples of 50 titles; candidates stand in another order at each step."""

    def __init__(self) -> None:
        self.histories, self.pools, self.targets = pools_of(24)

    def draw(self, rows, step, with_candidates=True):
        order = np.random.default_rng(step).permutation(7)
        pools = [np.array(self.pools[row])[order].tolist() for row in rows]
        return Samples([self.histories[row] for row in rows], pools, self.targets[rows][:, order])


class Stopped(Exception):
    """Stands for the end of a process."""


class Tuning:
    """A loop of six steps on a small model with dropout, and what it was told."""

    def __init__(self, folder, scores=(), due=(), stop_at=None, **changes) -> None:
        self.scorer = language_model_of(folder, lora=LoraSettings(r=4, dropout=0.3))
        self.scores, self.due, self.stop_at = dict(enumerate(scores, 1)), set(due), stop_at
        self.validated: list[int] = []
        self.adapters: list[dict] = []
        self.mean_losses: list[list[float]] = []
        self.steps: list[tuple[int, float]] = []
        self.states: list[dict] = []
        plan = {
            "batches": np.split(np.arange(24), 6),
            "loss": self.scorer.ranker.losses["label"],
            "learning_rate": 0.02,
            "schedule": "cosine",
            "clipping": {"max_norm": 1.0},
            "eval_steps": 2,
            "validates": True,
            "validates_untuned": True,
            "stopping_step": 10,
            "bigger": True,
            "seed": 5,
        }
        model = self.scorer.ranker.model
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.loop = TuningLoop(
            self.scorer,
            FewSamples(),
            TuningPlan(**(plan | changes)),
            torch.optim.AdamW(weights),
            TokenBudget(2000, "train_batch_tokens"),
            self.validate,
            self.told,
            self.save,
            lambda: len(self.steps) in self.due,
        )

    def validate(self, step: int, progress: TuningProgress):
        self.validated.append(step)
        self.adapters.append(self.scorer.adapter_weights())
        self.mean_losses.append(list(progress.losses))
        score = self.scores.get(len(self.validated), float(step))
        return score, {"ndcg@10": score}

    def told(self, step: int, loss: float) -> None:
        self.steps.append((step, loss))
        if step == self.stop_at:
            raise Stopped

    def save(self, state: dict) -> None:
        """As another process reads it: by the unpickler that reads tensors and plain values."""
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        self.states.append(torch.load(file, weights_only=True))

    def run(self, state=None) -> TuningProgress:
        return self.loop.run(state, show_progress=False)


def assert_same_adapter(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_tunes_on_each_batch_and_validates_at_the_interval(tiny_llama):
    tuning = Tuning(tiny_llama)
    progress = tuning.run()
    assert [step for step, _ in tuning.steps] == [1, 2, 3, 4, 5, 6]
    assert tuning.validated == [2, 4, 6]
    assert progress.is_complete and progress.step == 6
    assert progress.curve.losses == dict(tuning.steps)
    assert progress.curve.scores == {2: 2.0, 4: 4.0, 6: 6.0}
    assert [len(losses) for losses in tuning.mean_losses] == [2, 2, 2]


def test_the_best_adapter_is_loaded_and_worse_validations_stop_early(tiny_llama):
    scores = [0.1, 0.5, 0.3, 0.2, 0.1, 0.9]
    tuning = Tuning(tiny_llama, scores, eval_steps=1, stopping_step=2)
    progress = tuning.run()
    assert tuning.validated == [1, 2, 3, 4, 5]  # two worse ones are allowed, the third stops
    assert (progress.best_score, progress.best_result) == (0.5, {"ndcg@10": 0.5})
    best = tuning.scorer.adapter_weights()
    assert_same_adapter(best, tuning.adapters[1])
    assert any(not torch.equal(best[name], tuning.adapters[-1][name]) for name in best)


def test_smaller_is_better_where_the_metric_says_so(tiny_llama):
    progress = Tuning(tiny_llama, [0.5, 0.2, 0.9], bigger=False).run()
    assert progress.best_score == 0.2


def test_without_validation_data_the_last_adapter_stays(tiny_llama):
    tuning = Tuning(tiny_llama, validates=False)
    before = tuning.scorer.adapter_weights()
    progress = tuning.run()
    assert progress.best_score is None and tuning.validated == []
    after = tuning.scorer.adapter_weights()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(tuning.states) == 1 and tuning.states[0]["is_complete"]


@pytest.mark.parametrize(("untuned", "validated"), [(True, [0]), (False, [])])
def test_without_steps_there_is_at_most_one_validation(tiny_llama, untuned, validated):
    tuning = Tuning(tiny_llama, batches=[], validates_untuned=untuned)
    progress = tuning.run()
    assert tuning.validated == validated and progress.is_complete and tuning.steps == []


@pytest.mark.parametrize("due", [(), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("stop_at", [2, 3, 5, 6])
def test_a_loop_that_was_stopped_goes_on_to_the_same_bits(tiny_llama, due, stop_at):
    """At any step, whether the last state is of that step or of an earlier validation."""
    torch.set_num_threads(1)
    whole = Tuning(tiny_llama, scores=[0.3, 0.2, 0.1])
    expected = whole.run()
    stopped = Tuning(tiny_llama, scores=[0.3, 0.2, 0.1], due=due, stop_at=stop_at)
    with pytest.raises(Stopped):
        stopped.run()
    state = stopped.states[-1] if stopped.states else None
    n_validated = len(state["curve"]["scores"]) if state else 0
    going_on = Tuning(tiny_llama, scores=[0.3, 0.2, 0.1][n_validated:])
    torch.rand(7)
    progress = going_on.run(state)
    assert vars(progress.curve) == vars(expected.curve)
    assert progress.best_score == expected.best_score == 0.3
    assert_same_adapter(going_on.scorer.adapter_weights(), whole.scorer.adapter_weights())
    assert_same_adapter(going_on.adapters[-1], whole.adapters[-1])


def test_a_complete_state_gives_the_best_adapter_without_a_step(tiny_llama):
    whole = Tuning(tiny_llama, scores=[0.3, 0.2, 0.1])
    whole.run()
    again = Tuning(tiny_llama)
    progress = again.run(whole.states[-1])
    assert again.steps == again.validated == [] and progress.is_complete
    assert_same_adapter(again.scorer.adapter_weights(), whole.scorer.adapter_weights())


def test_a_state_without_a_loss_scale_goes_on_where_there_is_one(tiny_llama):
    """As one of a CPU does on a GPU in float16."""
    stopped = Tuning(tiny_llama, due={1, 2}, stop_at=3)
    with pytest.raises(Stopped):
        stopped.run()
    assert stopped.states[-1]["scaler"] == {}
    going_on = Tuning(tiny_llama)
    going_on.loop.scaler = GradScaler("cpu", enabled=True)
    progress = going_on.run(stopped.states[-1])
    assert progress.is_complete and progress.step == 6


def test_the_time_of_an_interrupted_run_counts(tiny_llama):
    stopped = Tuning(tiny_llama, due={1, 2, 3}, stop_at=4)
    with pytest.raises(Stopped):
        stopped.run()
    assert 0 < stopped.states[-1]["seconds"] < 60
    progress = Tuning(tiny_llama).run(stopped.states[-1] | {"seconds": 3600.0})
    assert 3600 < progress.seconds < 3660


def test_the_state_is_saved_at_each_validation_at_the_end_and_where_it_is_due(tiny_llama):
    tuning = Tuning(tiny_llama, due={1, 3})
    tuning.run()
    assert [state["step"] for state in tuning.states] == [1, 2, 3, 4, 6]
    assert [state["is_complete"] for state in tuning.states] == [False] * 4 + [True]


def test_dropout_differs_by_step_and_process():
    seeds = {step_seed(seed, step, rank) for seed in (1, 2) for step in (1, 2) for rank in (0, 1)}
    assert len(seeds) == 8
    assert step_seed(1, 2, 0) == step_seed(1, 2, 0)
