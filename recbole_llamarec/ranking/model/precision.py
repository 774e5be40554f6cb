"""Adapters that compute in the precision of the model that they are put into, and in few passes."""

from __future__ import annotations

from functools import partial
from typing import Any

from peft import PeftModel
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn


class _LinearInInputPrecision(nn.Linear):
    """A linear layer whose float32 weights are rounded to the input's precision at each product."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight.to(x.dtype), bias)


def compute_in_the_models_precision(model: PeftModel) -> None:
    """Let an adapter with float32 weights compute in the precision of what it is put into.

    PEFT converts activations to float32 and back instead: with an adapter on every linear layer of
    a bfloat16 model on a CPU, ranking then takes about 15 % longer. On layers that are plain, the
    adapter's product is added to the layer's within the product itself.
    """
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        matrices: list[Any] = [layer.lora_A, layer.lora_B]
        if not all(type(linear) is nn.Linear for each in matrices for linear in each.values()):
            continue  # of a convolution, for example
        layer.cast_input_dtype_enabled = False
        for each in matrices:
            for name, linear in each.items():
                rounded = _LinearInInputPrecision(
                    linear.in_features, linear.out_features, bias=False, device="meta"
                )
                rounded.weight, rounded.bias = linear.weight, linear.bias
                each[name] = rounded
        if type(layer) is Linear and type(layer.get_base_layer()) is nn.Linear:
            layer.forward = partial(_forward, layer)


def _forward(layer: Linear, x: Tensor, *args, **kwargs) -> Tensor:
    """PEFT's ``Linear.forward`` of one plain adapter, without its passes over the output.

    PEFT scales the adapter's product and adds it in passes of their own, which on a CPU take longer
    than the product.

    Args:
        layer: whose base layer is an ``nn.Linear``.
        x: ``[..., in]``.

    Returns:
        ``[..., out]``.
    """
    (name, *others) = layer.active_adapters or [""]
    is_plain = name in layer.lora_A and name not in layer.lora_variant
    if args or kwargs or others or not is_plain or layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)
    output = layer.base_layer(x)  # [..., out]
    down = layer.lora_A[name](layer.lora_dropout[name](x))  # [..., r]
    up = layer.lora_B[name]
    if up.bias is not None:
        output = output + up.bias.to(x.dtype) * layer.scaling[name]
    output.view(-1, output.shape[-1]).addmm_(
        down.view(-1, down.shape[-1]), up.weight.to(x.dtype).T, alpha=layer.scaling[name]
    )
    return output
