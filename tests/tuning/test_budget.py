"""The budget of tuning, by what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from runs import language_model_of

from recbole_llamarec.tuning import budget as budget_module
from recbole_llamarec.tuning.budget import bytes_of_a_token, counting_saved_bytes, tuning_budget


@pytest.fixture
def model(tiny_llama):
    return language_model_of(tiny_llama).ranker.model


def test_each_memory_that_is_kept_counts_once_and_weights_do_not():
    weight = torch.randn(4, 4, requires_grad=True)
    given = torch.randn(3, 4, requires_grad=True)
    with counting_saved_bytes([weight]) as kept:
        product = given @ weight  # keeps both
        (product * product[:, :]).sum()  # keeps one memory twice
    assert sum(kept.values()) == 4 * (3 * 4 + 3 * 4)


def test_a_layer_of_a_decoder_keeps_what_its_shape_says(model):
    before = bytes_of_a_token(model)
    base = model.get_base_model()
    base.model.layers.append(base.model.layers[-1])
    base.config.num_hidden_layers = 3
    assert bytes_of_a_token(model) > 1.4 * before  # two layers have become three
    hidden, inner = 64, 128
    of_layer = bytes_of_a_token(model) - before
    assert 4 * (5 * hidden + 3 * inner) < of_layer < 4 * (20 * hidden + 6 * inner)
    assert not model.training


@pytest.mark.parametrize("free", [10**7, 10**8, 1])
def test_auto_takes_the_free_memory_of_a_gpu(model, free, monkeypatch):
    monkeypatch.setattr(budget_module, "free_memory", lambda device: free)
    budget = tuning_budget("auto", model)
    assert budget.tokens == max(1, int(0.8 * free / bytes_of_a_token(model)))
    assert budget.key == "train_batch_tokens"


def test_on_a_cpu_auto_is_1024_and_a_number_is_taken_anywhere(model):
    assert tuning_budget("auto", model).tokens == 1024
    assert tuning_budget("auto", torch.nn.Module()).tokens == 1024  # a server has the weights
    assert tuning_budget(77, model).tokens == 77
