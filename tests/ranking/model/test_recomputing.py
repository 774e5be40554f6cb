"""Layers that are computed again give the same losses and gradients, and hold less."""

from __future__ import annotations

import pytest
import torch
from rankers import WAYS, gradient_of, one_hot, parts_of, randomise_adapter, trainable
from tiny_models import tiny_model

from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.likelihood import Likelihood
from recbole_llamarec.ranking.model.recomputing import decoder_layers, recomputed_layers

HISTORIES, POOLS = [[1, 2, 3, 4], [5], [6, 7]], [[8, 9, 10, 11, 12, 13, 14]] * 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Letters, Likelihood])
def test_losses_and_gradients_are_the_same(tiny_llama, kind, way):
    ranker = kind.build(parts_of(tiny_llama, way, lora={"dropout": 0.3}))
    randomise_adapter(ranker.model)
    encoded = [ranker.encode(*row) for row in zip(HISTORIES, POOLS, strict=True)]
    entered, layer = [], decoder_layers(ranker.model)[0]
    layer.mlp.register_forward_pre_hook(lambda *_: entered.append(1))

    def tuned() -> tuple[float, list[torch.Tensor], int]:
        entered.clear()
        torch.manual_seed(4)  # of dropout
        loss = gradient_of(ranker, encoded, one_hot([1, 3, 0], 7), "label", 4000)
        return loss, [weight.grad.clone() for weight in trainable(ranker.model)], len(entered)

    loss, gradients, n_passes = tuned()
    with recomputed_layers(ranker.model):
        again, others, n_recomputed = tuned()
    assert again == loss and n_recomputed == 2 * n_passes
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-5)
    assert "forward" not in vars(layer)


def test_a_model_whose_layers_are_not_found_is_refused():
    model = tiny_model("llama")
    model.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="train_gradient_checkpointing: True: .* 5 layers"):
        decoder_layers(model)
