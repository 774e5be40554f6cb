import json
import logging
import re
import warnings

import pytest
import torch
from limits import files_of_at_most
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.gpt2 import GPT2LMHeadModel

from recbole_llamarec.ranking.model.adapter import (
    adapter_config,
    adapter_state,
    add_adapter,
    base_model,
    load_adapter,
    load_adapter_state,
    restore_adapter,
    save_adapter,
)
from recbole_llamarec.ranking.model.lora import LoraSettings
from recbole_llamarec.ranking.model.precision import compute_in_the_models_precision

INPUT_IDS = torch.arange(1, 13).view(2, 6)


def tiny_llama(hidden_size: int = 32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.name_or_path = "test/tiny-llama"
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


def trained(settings: LoraSettings | None = None) -> PeftModel:
    """A model whose adapter changes its outputs, as a fresh one does not."""
    model = add_adapter(tiny_llama(), settings or LoraSettings(), seed=1)
    generator = torch.Generator().manual_seed(2)
    state = {k: torch.randn(t.shape, generator=generator) for k, t in adapter_state(model).items()}
    load_adapter_state(model, state)
    return model


def test_new_adapter_changes_nothing_and_alone_is_trainable():
    before = logits(tiny_llama())
    model = add_adapter(tiny_llama(), LoraSettings(), seed=1)
    assert torch.equal(logits(model), before)
    assert not model.training
    assert not any(module.training for module in model.modules())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2 * 2
    assert all("lora_" in name for name in trainable)
    assert model.peft_config["default"].base_model_name_or_path == "test/tiny-llama"


def test_what_peft_asks_by_an_old_name_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_adapter(tiny_llama(), LoraSettings(), seed=1)


def test_initial_weights_depend_on_the_seed_only():
    states = []
    for global_seed, seed in [(5, 1), (6, 1), (5, 2)]:
        model = tiny_llama()
        torch.manual_seed(global_seed)
        generator = torch.get_rng_state()
        states.append(adapter_state(add_adapter(model, LoraSettings(), seed)))
        assert torch.equal(generator, torch.get_rng_state())
    first, same, other = states
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())
    down = [name for name in first if "lora_A" in name]
    assert all(not torch.equal(first[name], other[name]) for name in down)


def test_state_is_a_detached_copy():
    model = trained()
    state = adapter_state(model)
    assert all(not t.requires_grad and t.device.type == "cpu" for t in state.values())
    assert {t.shape for n, t in state.items() if "lora_A" in n} == {torch.Size([8, 32])}
    kept = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


def test_state_restores_the_outputs():
    model = trained()
    fresh = add_adapter(tiny_llama(), LoraSettings(), seed=3)
    assert not torch.allclose(logits(fresh), logits(model))
    load_adapter_state(fresh, adapter_state(model))
    assert torch.equal(logits(fresh), logits(model))


def test_state_that_does_not_fit_is_refused_and_changes_nothing():
    model = trained()
    state, before = adapter_state(model), logits(model)
    name = next(iter(state))
    for wrong, message in [
        ({key: t for key, t in state.items() if key != name}, "is missing"),
        (state | {"extra": torch.zeros(1)}, "extra is unexpected"),
        (state | {name: torch.zeros(4, 32)}, r"has the shape \[4, 32\], the model's \[8, 32\]"),
        ({}, "and 5 more"),
    ]:
        with pytest.raises(
            ValueError, match=f"does not fit the model test/tiny-llama: .*{message}"
        ):
            load_adapter_state(model, wrong)
        assert torch.equal(logits(model), before)


def test_a_described_adapter_is_restored_from_plain_values():
    settings = LoraSettings(r=2, alpha=6, dropout=0.1, target_modules=["up_proj"], layers=[1])
    model = trained(settings)
    assert all(".layers.1.mlp.up_proj." in name for name in adapter_state(model))
    config = adapter_config(model)
    assert json.loads(json.dumps(config)) == config
    kept = {name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    assert kept == {"r": 2, "lora_alpha": 6, "lora_dropout": 0.1, "target_modules": ["up_proj"]}
    for trainable in (False, True):
        again = restore_adapter(tiny_llama(), config, adapter_state(model), trainable)
        assert torch.equal(logits(again), logits(model))
        assert any(p.requires_grad for p in again.parameters()) == trainable
        assert adapter_config(again) == config | {"inference_mode": not trainable}


def test_the_base_model_is_what_the_adapter_is_put_into():
    base = tiny_llama()
    assert base_model(base) is base
    assert base_model(add_adapter(base, LoraSettings(), seed=0)) is base


def test_conv1d_models_take_an_adapter():
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    model = add_adapter(GPT2LMHeadModel(config), LoraSettings(target_modules=("c_attn",)), seed=0)
    assert len(adapter_state(model)) == 2


def test_unknown_targets_and_layers_are_reported_together():
    with pytest.raises(ValueError) as error:
        add_adapter(tiny_llama(), LoraSettings(target_modules=("q_proj", "Wqkv"), layers=(0, 7)), 0)
    message = str(error.value)
    assert "lora_target_modules: ['q_proj', 'Wqkv']" in message
    assert "no linear layer ['Wqkv']; it has ['down_proj', 'gate_proj', 'k_proj'," in message
    assert "lora_layers: [0, 7]" in message
    assert "no layer [7]; its layers are 0 to 1" in message


def test_all_invalid_settings_are_reported_at_once():
    with pytest.raises(ValueError) as error:
        LoraSettings(r=0, alpha=-1, dropout=1.0, target_modules="q_proj", layers=[-1])
    keys = [line.partition(":")[0] for line in str(error.value).splitlines()]
    assert keys == [f"lora_{k}" for k in ("r", "alpha", "dropout", "target_modules", "layers")]


def test_lists_of_yaml_are_taken_and_the_defaults_are_valid():
    settings = LoraSettings(target_modules=["q_proj"], layers=[0, 1])
    assert (settings.target_modules, settings.layers) == (("q_proj",), (0, 1))
    assert LoraSettings() == LoraSettings(8, 32, 0.05, ("q_proj", "v_proj"), None)


def test_saved_adapter_is_what_peft_loads(tmp_path):
    model, directory = trained(), tmp_path / "deep" / "adapter"
    save_adapter(model, directory)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        path.name for path in directory.iterdir()
    }
    assert [path.name for path in directory.parent.iterdir()] == ["adapter"]
    described = json.loads((directory / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "test/tiny-llama"
    by_peft = PeftModel.from_pretrained(tiny_llama(), directory)
    assert torch.equal(logits(by_peft), logits(model))


@pytest.mark.parametrize("trainable", [False, True])
def test_saved_adapter_is_loaded(tmp_path, trainable):
    settings = LoraSettings(r=4, alpha=7, layers=(0,))
    model = trained(settings)
    save_adapter(model, tmp_path / "adapter")
    generator = torch.get_rng_state()
    loaded = load_adapter(tiny_llama(), tmp_path / "adapter", trainable)
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(logits(loaded), logits(model))
    assert adapter_config(loaded) == adapter_config(model) | {"inference_mode": not trainable}
    assert any(p.requires_grad for p in loaded.parameters()) == trainable
    assert not loaded.training


def test_an_adapter_on_another_base_is_loaded_with_a_warning(tmp_path, caplog):
    save_adapter(trained(), tmp_path / "adapter")
    other = tiny_llama()
    other.name_or_path = "test/other"
    with caplog.at_level(logging.WARNING):
        load_adapter(other, tmp_path / "adapter")
    assert "names test/tiny-llama as its base model; it is loaded into test/other" in caplog.text


def test_saving_again_replaces_an_adapter_and_nothing_else(tmp_path):
    directory = tmp_path / "adapter"
    save_adapter(add_adapter(tiny_llama(), LoraSettings(), seed=0), directory)
    model = trained()
    save_adapter(model, directory)
    assert torch.equal(logits(load_adapter(tiny_llama(), directory)), logits(model))
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="notes.txt"):
        save_adapter(model, directory)
    assert (directory / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_full_disk_leaves_the_old_adapter_and_is_an_error_with_its_place(tmp_path):
    directory, model = tmp_path / "adapter", trained()
    save_adapter(model, directory)
    with files_of_at_most(4096), pytest.raises(OSError, match=f"checkpoint_dir: '{directory}'"):
        save_adapter(trained(), directory)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(logits(load_adapter(tiny_llama(), directory)), logits(model))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "README.md"])
def test_a_flipped_bit_of_an_adapter_is_refused_with_its_file(tmp_path, name):
    save_adapter(trained(), tmp_path / "adapter")
    file = tmp_path / "adapter" / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is damaged.*Restore a copy.*train again"):
        load_adapter(tiny_llama(), tmp_path / "adapter")


def test_interrupted_saving_leaves_the_old_adapter(tmp_path, monkeypatch):
    directory, model = tmp_path / "adapter", trained()
    save_adapter(model, directory)

    def interrupted(path, **options):
        raise KeyboardInterrupt

    broken = trained()
    monkeypatch.setattr(broken, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(broken, directory)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    load_adapter(tiny_llama(), directory)


def test_adapter_of_another_model_is_refused_and_the_model_restored(tmp_path):
    save_adapter(trained(), tmp_path / "adapter")
    other = tiny_llama(hidden_size=64)
    before = logits(other)
    with pytest.raises(ValueError, match="trained on test/tiny-llama.*does not fit the model"):
        load_adapter(other, tmp_path / "adapter")
    assert torch.equal(logits(other), before)
    assert not any("lora_" in name for name, _ in other.named_modules())
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="GPT2LMHeadModel.*Target modules"):
        load_adapter(gpt2, tmp_path / "adapter")


def test_files_that_are_no_adapter_are_refused(tmp_path):
    directory = tmp_path / "adapter"
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapter(tiny_llama(), directory)
    save_adapter(trained(), directory)
    (directory / "SHA256SUMS").unlink()  # as the folders of other programs
    weights, config = directory / "adapter_model.safetensors", directory / "adapter_config.json"

    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is damaged"):
        load_adapter(tiny_llama(), directory)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors"):
        load_adapter(tiny_llama(), directory)
    (directory / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match="pickled adapter_model.bin.*save_pretrained"):
        load_adapter(tiny_llama(), directory)
    weights.write_bytes(whole)

    described = json.loads(config.read_text())
    config.write_text(json.dumps(described | {"peft_type": "IA3"}))
    with pytest.raises(ValueError, match="no LoRA adapter"):
        load_adapter(tiny_llama(), directory)
    config.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_adapter(tiny_llama(), directory)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"lora_alpha": "32"}, "its lora_alpha is '32', which is no finite number"),
        ({"r": "8"}, "its r is '8', which is no finite number"),
        ({"lora_dropout": None}, "its lora_dropout is None"),
        ({"bias": "foo"}, "its bias is 'foo', which must be none, all or lora_only"),
        ({"rank_pattern": "foo"}, "PEFT cannot make what its configuration says"),
        ({"target_modules": "(("}, "PEFT cannot make what its configuration says"),
    ],
)
def test_a_configuration_of_no_use_is_refused_and_the_model_left_alone(tmp_path, value, fault):
    save_adapter(trained(), tmp_path / "adapter")
    (tmp_path / "adapter" / "SHA256SUMS").unlink()
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | value))
    model = tiny_llama()
    with pytest.raises(ValueError, match=f"The adapter in .* cannot be loaded.*{re.escape(fault)}"):
        load_adapter(model, tmp_path / "adapter")
    assert not any("lora_" in name for name, _ in model.named_modules())


@pytest.mark.parametrize(
    "variant",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"lora_bias": True},
        {"target_modules": r".*\.1\..*v_proj"},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "gaussian"},
    ],
    ids=lambda variant: next(iter(variant)),
)
def test_variants_of_lora_are_loaded_as_peft_loads_them(tmp_path, variant):
    torch.manual_seed(0)
    config = LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | variant)
    model = get_peft_model(tiny_llama(), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    save_adapter(model, tmp_path / "adapter")
    by_peft = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter").eval()
    assert not torch.equal(logits(by_peft), logits(tiny_llama()))
    loaded = load_adapter(tiny_llama(), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(by_peft), atol=1e-6, rtol=1e-6)
    again = restore_adapter(tiny_llama(), adapter_config(loaded), adapter_state(loaded))
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("change", ["less", "more", "shape"])
def test_weights_that_do_not_fit_their_description_are_refused(tmp_path, change):
    directory = tmp_path / "adapter"
    save_adapter(trained(), directory)
    path = directory / "adapter_model.safetensors"
    state = load_file(path)
    name = next(iter(state))
    if change == "less":
        del state[name]
    elif change == "more":
        state["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(8, 32)
    else:
        state[name] = torch.zeros(4, 32)
    save_file(state, path)
    (directory / "SHA256SUMS").unlink()
    model = tiny_llama()
    before = logits(model)
    message = {"less": "is missing", "more": "is unexpected", "shape": "has the shape"}[change]
    with pytest.raises(ValueError, match=f"cannot be loaded into the model.*{message}"):
        load_adapter(model, directory)
    assert torch.equal(logits(model), before)
    assert not any("lora_" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("moment", ["writing", "between the renames"])
def test_what_a_killed_run_left_is_put_right_by_the_next_saving(tmp_path, moment):
    directory, model = tmp_path / "adapter", trained()
    save_adapter(add_adapter(tiny_llama(), LoraSettings(), seed=0), directory)
    part = tmp_path / ".adapter.part"
    part.mkdir()
    (part / "half").touch()
    if moment == "between the renames":
        directory.rename(tmp_path / ".adapter.replaced")
    save_adapter(model, directory)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert torch.equal(logits(load_adapter(tiny_llama(), directory)), logits(model))


def test_an_adapter_computes_in_the_models_precision_and_learns_in_float32():
    """PEFT alone would convert activations to float32 and back."""
    torch.manual_seed(0)
    states = torch.randn(5, 32)
    outputs, gradients, inner = [], [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_llama().to(dtype)
        model = add_adapter(model, LoraSettings(target_modules=("q_proj",), dropout=0.0), seed=0)
        layer = model.get_base_model().get_decoder().layers[0].self_attn.q_proj
        layer.lora_A["default"].register_forward_hook(lambda *called: inner.append(called[-1]))
        with torch.no_grad():
            layer.lora_B["default"].weight.fill_(0.1)
        output = layer(states.to(dtype))
        output.float().square().sum().backward()
        assert inner[-1].dtype == output.dtype == dtype
        assert layer.lora_A["default"].weight.dtype == torch.float32
        outputs.append(output.float())
        gradients.append(layer.lora_A["default"].weight.grad)
    torch.testing.assert_close(outputs[1], outputs[0], atol=0.1, rtol=0.05)
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def both_ways(model, x):
    """Output, and gradients of input and adapter, of a layer as it is and as PEFT computes it."""
    layer = base_model(model).model.layers[0].mlp.down_proj
    results = []
    for forward in (layer.forward, lambda x: type(layer).forward(layer, x)):
        torch.manual_seed(3)  # of dropout
        own = x.clone().requires_grad_()
        layer.zero_grad()
        output = forward(own)
        (output * torch.arange(output.shape[-1])).sum().backward()
        weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        results.append([output, own.grad, *(weight.grad.clone() for weight in weights)])
    return zip(*results, strict=True)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("use_bias", [False, True])
def test_the_added_product_is_pefts(dropout, use_bias):
    model = tiny_llama()
    config = LoraConfig(
        r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["down_proj"], lora_bias=use_bias,
        init_lora_weights=False,
    )  # fmt: skip
    wrapped = get_peft_model(model, config).train()
    compute_in_the_models_precision(wrapped)
    layer = wrapped.base_model.model.model.layers[0].mlp.down_proj
    if use_bias:
        torch.nn.init.normal_(layer.lora_B["default"].bias)
    for ours, pefts in both_ways(wrapped, torch.randn(2, 5, 64)):
        torch.testing.assert_close(ours, pefts, rtol=1e-5, atol=1e-4)


def test_an_adapter_is_still_turned_off_and_merged_as_peft_does():
    model, plain = trained(), logits(tiny_llama())
    tuned = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert not torch.allclose(tuned, plain)
    torch.testing.assert_close(logits(model.merge_and_unload()), tuned, rtol=1e-3, atol=1e-3)
