import sys

import pytest
import tokenizers
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from recbole_llamarec.ranking import language_model
from recbole_llamarec.ranking.model.loading import (
    LanguageModelSettings,
    check_language_model,
    final_softcap,
    last_hidden,
    load_language_model,
    max_positions,
    output_head,
)

CPU = torch.device("cpu")
VOCABULARY = 99
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def tiny_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**SIZES)
    elif kind == "gemma2":
        config = transformers.Gemma2Config(
            **SIZES, head_dim=16, sliding_window=4, final_logit_softcapping=5.0
        )
    else:
        config = transformers.Gemma3TextConfig(
            **SIZES,
            head_dim=16,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        )
    attention = "eager" if kind == "gemma2" else "sdpa"  # transformers has no other for Gemma 2
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def with_adapter(model: nn.Module) -> nn.Module:
    """An adapter whose update is not zero, as a fresh one's is."""
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config).eval()


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny-llama")
    words = {"[PAD]": 0} | {f"word{i}": i for i in range(1, VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(directory)
    tiny_model("llama").save_pretrained(directory)
    return directory


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3"])
def test_last_hidden_equals_each_prompt_alone_without_padding(kind, adapted):
    model = tiny_model(kind)
    model = with_adapter(model) if adapted else model
    lengths = torch.tensor([3, 11, 1, 8])
    input_ids = torch.randint(1, VOCABULARY, (4, 11))
    with torch.no_grad():
        hidden = last_hidden(model, input_ids, lengths)
        logits = output_head(model)(hidden)
        cap = final_softcap(model)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        for row, length in enumerate(lengths):
            alone = model(
                input_ids=input_ids[row : row + 1, :length],
                attention_mask=torch.ones(1, length, dtype=torch.long),
                output_hidden_states=True,
            )
            expected = alone.hidden_states[-1][0, -1]
            torch.testing.assert_close(hidden[row], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(logits[row], alone.logits[0, -1], atol=1e-5, rtol=1e-5)


def test_padding_cannot_influence_the_state():
    model, lengths = tiny_model("gemma3"), torch.tensor([3, 9])
    first = torch.randint(1, VOCABULARY, (2, 12))
    second = first.clone()
    second[0, 3:], second[1, 9:] = 0, 0
    with torch.no_grad():
        assert torch.equal(last_hidden(model, first, lengths), last_hidden(model, second, lengths))


def test_last_hidden_has_gradients_when_they_are_enabled():
    model = with_adapter(tiny_model("llama"))
    hidden = last_hidden(model, torch.randint(1, VOCABULARY, (2, 5)), torch.tensor([5, 2]))
    hidden.square().sum().backward()
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(weights) == 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights.values())


def test_output_head_softcap_and_positions():
    model = tiny_model("gemma2")
    assert output_head(with_adapter(model)) is model.lm_head
    assert final_softcap(model) == 5.0
    assert final_softcap(tiny_model("llama")) is None
    assert max_positions(model) == 64
    multimodal = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**SIZES, final_logit_softcapping=7.0)
    )
    holder = nn.Module()
    holder.config = multimodal
    assert final_softcap(holder) == 7.0


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="llm_name_or_path.*LlamaModel.*no output head"):
        output_head(tiny_model("llama").model)


def test_max_positions_of_an_unknown_config():
    class Model:
        config = type("C", (), {"get_text_config": lambda self: object()})()

    assert max_positions(Model()) is None


def test_loads_a_directory_frozen_in_evaluation_mode(model_directory):
    generator = torch.get_rng_state()
    settings = LanguageModelSettings(name_or_path=str(model_directory), dtype="float32")
    model, tokenizer = load_language_model(settings, CPU)
    assert torch.equal(generator, torch.get_rng_state())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.name_or_path == model.config.name_or_path == str(model_directory)
    assert tokenizer("word3 word5").input_ids == [3, 5]
    expected = tiny_model("llama").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_dtype_and_attention_are_heeded(model_directory):
    settings = LanguageModelSettings(str(model_directory), dtype="bfloat16", attention="eager")
    model, _ = load_language_model(settings, CPU)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_an_attention_that_the_model_lacks_is_reported(tmp_path, model_directory):
    tiny_model("gemma2").save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_directory / name).read_bytes())
    with pytest.raises(ValueError, match="llm_attention: sdpa.*Try llm_attention: eager"):
        load_language_model(LanguageModelSettings(str(tmp_path), attention="sdpa"), CPU)
    model, _ = load_language_model(LanguageModelSettings(str(tmp_path)), CPU)  # auto finds one
    assert model.packs_prompts


def test_auto_dtype_is_bfloat16_on_a_gpu():
    assert language_model._dtype(LanguageModelSettings(), torch.device("cuda")) == torch.bfloat16


@pytest.mark.parametrize("feature", [None, "avx512_bf16", "amx_bf16"])
def test_auto_dtype_on_a_cpu_is_what_its_instructions_are_for(feature, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True, "avx2": True})
    expected = torch.bfloat16 if feature else torch.float32
    assert language_model._dtype(LanguageModelSettings(), CPU) == expected
    assert language_model._dtype(LanguageModelSettings(dtype="float32"), CPU) == torch.float32


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_model_and_its_gradients_are_close_to_the_exact_ones(key, model_directory):
    settings = LanguageModelSettings(str(model_directory), **{key: True})
    model, _ = load_language_model(settings, CPU)
    kind = "Linear4bit" if key == "load_in_4bit" else "Linear8bitLt"
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == kind
    assert type(output_head(model)) is nn.Linear
    exact = tiny_model("llama").requires_grad_(False)
    input_ids, lengths = torch.randint(1, VOCABULARY, (3, 6)), torch.tensor([6, 2, 4])
    with torch.no_grad():  # before the training, as it is what makes bitsandbytes repack layers
        hidden = last_hidden(model, input_ids, lengths)
        reference = last_hidden(exact, input_ids, lengths)
    assert torch.nn.functional.cosine_similarity(hidden.float(), reference).min() > 0.95

    gradients = []
    for base in (model, exact):
        torch.manual_seed(1)
        adapted = with_adapter(base)
        last_hidden(adapted, input_ids, lengths).float()[:, :8].square().mean().backward()
        gradients.append([p.grad.flatten() for p in adapted.parameters() if p.requires_grad])
    assert len(gradients[0]) == 8
    for found, expected in zip(*gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.9


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_missing_bitsandbytes_is_reported_with_the_command(key, model_directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    settings = LanguageModelSettings(str(model_directory), **{key: True})
    with pytest.raises(ImportError, match=f"llm_{key}.*pip install bitsandbytes"):
        check_language_model(settings)
    check_language_model(LanguageModelSettings(str(model_directory)))


@pytest.mark.parametrize("name", ["./absent", "~/absent-model", "/absent/model", "absent/x.gguf"])
def test_absent_paths_are_reported(name):
    with pytest.raises(FileNotFoundError, match="llm_name_or_path: .* does not exist; give"):
        check_language_model(LanguageModelSettings(name))


def test_a_hub_name_is_not_checked():
    check_language_model(LanguageModelSettings("meta-llama/Llama-2-7b-hf", revision="main"))


def test_a_hub_name_that_cannot_be_loaded_is_reported(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("We couldn't connect.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", no_network)
    settings = LanguageModelSettings("nobody/nothing", cache_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="llm_name_or_path: 'nobody/nothing' could not"):
        load_language_model(settings, CPU)


def test_directories_without_a_model_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="llm_name_or_path: .*holds no config.json"):
        check_language_model(LanguageModelSettings(str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="llm_gguf_file: .*holds no model.gguf"):
        check_language_model(LanguageModelSettings(str(tmp_path), gguf_file="model.gguf"))


def test_a_gguf_path_is_split_into_directory_and_file(tmp_path, monkeypatch):
    seen = {}

    def load_gguf(directory, gguf_file, **options):
        seen.update(directory=directory, gguf_file=gguf_file, **options)
        return tiny_model("llama"), "tokenizer"

    monkeypatch.setattr(language_model, "load_gguf", load_gguf)
    path = tmp_path / "own.gguf"
    path.touch()
    model, tokenizer = load_language_model(LanguageModelSettings(str(path), dtype="float16"), CPU)
    assert (seen["directory"], seen["gguf_file"]) == (str(tmp_path), "own.gguf")
    assert seen["dtype"] == torch.float16
    assert model.name_or_path == str(path)
    assert tokenizer == "tokenizer"


def test_all_invalid_settings_are_reported_at_once():
    with pytest.raises(ValueError) as error:
        LanguageModelSettings(
            name_or_path="",
            dtype="int8",
            load_in_4bit="yes",
            load_in_8bit=1,
            attention="fast",
            cache_dir=3,
        )
    lines = str(error.value).splitlines()
    keys = ["name_or_path", "cache_dir", "dtype", "attention", "load_in_4bit", "load_in_8bit"]
    assert [line.partition(":")[0] for line in lines] == [f"llm_{key}" for key in keys]
    assert "'int8' must be one of auto, float32, bfloat16, float16" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"gguf_file": "x.gguf"}, "llm_gguf_file"),
        ({"revision": "main"}, "llm_revision"),
        ({"name_or_path": "a.gguf", "load_in_4bit": True}, "llm_load_in_4bit"),
        ({"name_or_path": "a.gguf", "load_in_8bit": True}, "llm_load_in_8bit"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "llm_load_in_4bit and llm_load_in_8bit"),
        ({"name_or_path": "o/n", "gguf_file": "q.gguf", "load_in_4bit": True}, "llm_load_in_4bit"),
    ],
)
def test_contradictions_are_reported(settings, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        LanguageModelSettings(**settings)
