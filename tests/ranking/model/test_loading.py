import sys

import pytest
import tokenizers
import torch
import transformers
from tiny_models import VOCABULARY, tiny_model, with_adapter
from torch import nn
from transformers import PreTrainedTokenizerFast

from recbole_llamarec.ranking.model import loading
from recbole_llamarec.ranking.model.forward import Padded, forward_for
from recbole_llamarec.ranking.model.head import output_head
from recbole_llamarec.ranking.model.loading import (
    LanguageModelSettings,
    check_language_model,
    load_language_model,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny-llama")
    words = {"[PAD]": 0} | {f"word{i}": i for i in range(1, VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[PAD]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(directory)
    tiny_model("llama", std=None).save_pretrained(directory)
    return directory


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
    expected = tiny_model("llama", std=None).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_dtype_and_attention_are_heeded(model_directory):
    settings = LanguageModelSettings(str(model_directory), dtype="bfloat16", attention="eager")
    model, _ = load_language_model(settings, CPU)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_an_attention_that_the_model_lacks_is_reported(tmp_path, model_directory):
    tiny_model("gemma2", std=None).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_directory / name).read_bytes())
    with pytest.raises(ValueError, match="llm_attention: sdpa.*Try llm_attention: eager"):
        load_language_model(LanguageModelSettings(str(tmp_path), attention="sdpa"), CPU)
    model, _ = load_language_model(LanguageModelSettings(str(tmp_path)), CPU)  # auto finds one
    assert model.config._attn_implementation == "eager"


def test_packed_attention_is_refused_before_anything_is_loaded():
    settings = LanguageModelSettings("./absent", attention="packed")
    with pytest.raises(ValueError, match="llm_attention: packed is for a CPU"):
        load_language_model(settings, torch.device("cuda"))


def test_a_loaded_model_is_packed_on_a_cpu(model_directory):
    model, _ = load_language_model(LanguageModelSettings(str(model_directory)), CPU)
    assert model.config._attn_implementation == "sdpa"
    forward_for(model, "auto", CPU)
    assert model.config._attn_implementation == "packed"


@pytest.mark.parametrize("prefers_bfloat16", [False, True])
def test_auto_dtype_is_what_the_device_has(prefers_bfloat16, model_directory, monkeypatch):
    monkeypatch.setattr(loading, "prefers_bfloat16", lambda device: prefers_bfloat16)
    model, _ = load_language_model(LanguageModelSettings(str(model_directory)), CPU)
    assert model.dtype == (torch.bfloat16 if prefers_bfloat16 else torch.float32)
    settings = LanguageModelSettings(str(model_directory), dtype="float16")
    assert load_language_model(settings, CPU)[0].dtype == torch.float16


def test_a_precision_that_is_slow_here_is_loaded_with_a_warning(
    model_directory, monkeypatch, caplog
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"})
    load_language_model(LanguageModelSettings(str(model_directory)), CPU)
    assert "llm_dtype" not in caplog.text  # auto is float32
    load_language_model(LanguageModelSettings(str(model_directory), dtype="bfloat16"), CPU)
    assert "llm_dtype: bfloat16: this processor has no instructions for it" in caplog.text


ENCODERS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "distilbert": transformers.DistilBertConfig,
}


@pytest.mark.parametrize("saved_as", ["ForMaskedLM", "Model"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_refused(kind, saved_as, model_directory, tmp_path):
    config = ENCODERS[kind](
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        **({"dim": 32, "n_heads": 4, "n_layers": 2} if kind == "distilbert" else {}),
    )
    torch.manual_seed(0)
    known = {"Model": transformers.AutoModel, "ForMaskedLM": transformers.AutoModelForMaskedLM}
    model = known[saved_as].from_config(config)
    for parameter in model.parameters():  # random ones would hardly look at other words
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_directory / name).read_bytes())
    settings = LanguageModelSettings(str(tmp_path))
    with pytest.raises(ValueError, match="llm_name_or_path: .*causal language model|DistilBert"):
        load_language_model(settings, CPU)
    if saved_as == "ForMaskedLM":
        with pytest.raises(ValueError, match="ForMaskedLM, which is no causal language model"):
            check_language_model(settings)


@pytest.mark.parametrize("key", ["load_in_4bit", "load_in_8bit"])
def test_a_quantised_model_and_its_gradients_are_close_to_the_exact_ones(key, model_directory):
    settings = LanguageModelSettings(str(model_directory), **{key: True})
    model, _ = load_language_model(settings, CPU)
    kind = "Linear4bit" if key == "load_in_4bit" else "Linear8bitLt"
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == kind
    assert type(output_head(model)) is nn.Linear
    exact = tiny_model("llama", std=None).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, VOCABULARY, (3, 6), generator=generator).tolist()

    def last_states(model):
        return Padded(model).hidden_at(prompts, [[[]]] * 3, [[[5]], [[1]], [[3]]])

    with torch.no_grad():  # before the training, as it is what makes bitsandbytes repack layers
        hidden, reference = last_states(model), last_states(exact)
    assert torch.nn.functional.cosine_similarity(hidden.float(), reference).min() > 0.95

    gradients = []
    for base in (model, exact):
        torch.manual_seed(1)
        adapted = with_adapter(base)
        last_states(adapted).float()[:, :8].square().mean().backward()
        gradients.append([p.grad.flatten() for p in adapted.parameters() if p.requires_grad])
    assert len(gradients[0]) == 8
    for found, expected in zip(*gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.85


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
        return tiny_model("llama", std=None), "tokenizer"

    monkeypatch.setattr(loading, "load_gguf", load_gguf)
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
    keys = ["name_or_path", "dtype", "load_in_4bit", "load_in_8bit", "attention", "cache_dir"]
    assert [line.partition(":")[0] for line in lines] == [f"llm_{key}" for key in keys]
    assert "'int8' must be auto, float32, bfloat16 or float16" in str(error.value)


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
