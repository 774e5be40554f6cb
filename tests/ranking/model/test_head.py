import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny_models import SIZES, VOCABULARY, tiny_model, with_adapter
from torch import nn

from recbole_llamarec.ranking.model.forward import Padded
from recbole_llamarec.ranking.model.head import (
    LogitScaling,
    TokenHead,
    final_softcap,
    head_logits,
    logit_scaling,
    max_positions,
    output_head,
    prompt_limit,
)

TOKENS = [7, 3, 98, 40]
SCALINGS = {
    "llama": LogitScaling(),
    "gemma2": LogitScaling(softcap=5.0),
    "gemma3": LogitScaling(),
    "gpt2": LogitScaling(),
    "granite": LogitScaling(1 / 8),
    "cohere": LogitScaling(1 / 16),
    "gpt_oss": LogitScaling(),
    "recurrent_gemma": LogitScaling(softcap=5.0),
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
def test_logits_of_some_tokens_are_the_models(kind, adapted):
    model = tiny_model(kind)
    model = with_adapter(model) if adapted else model
    prompt = [5, 6, 7, 8]
    with torch.no_grad():
        hidden = Padded(model).hidden_at([prompt], [[[]]], [[[3, 1]]])  # [2, H]
        expected = model(input_ids=torch.tensor([prompt])).logits[0, [3, 1]][:, TOKENS]
        scaling = logit_scaling(model)
        head = TokenHead(model, TOKENS, scaling)
        logits = head_logits(hidden, output_head(model), torch.tensor(TOKENS), scaling)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(head(hidden), logits)
    assert head.token_ids.tolist() == TOKENS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SCALINGS)
def test_the_scale_of_logits_is_measured(kind, dtype):
    model = tiny_model(kind, dtype=dtype).train()
    assert logit_scaling(model) == SCALINGS[kind]
    assert model.training


def test_the_logits_of_most_models_cost_no_multiplication():
    output = torch.randn(3, 4)
    assert logit_scaling(tiny_model("llama"))(output) is output


def test_logits_that_are_not_the_heads_times_a_number_are_refused():
    model = tiny_model("llama")
    plain = model.forward

    def shifted(**inputs):
        output = plain(**inputs)
        output.logits = output.logits.roll(1, dims=-1)
        return output

    model.forward = shifted
    with pytest.raises(ValueError, match="llm_name_or_path: the output head of .* not understood"):
        logit_scaling(model)


def test_logits_that_are_not_finite_are_left_to_who_ranks_with_them():
    model = tiny_model("llama")
    model.lm_head.weight.data.fill_(torch.nan)
    assert logit_scaling(model) == LogitScaling()


def test_rows_of_the_head_are_gathered_once():
    model = tiny_model("llama").requires_grad_(False)
    hidden = torch.randn(3, 32, requires_grad=True)
    head = TokenHead(model, TOKENS)
    before = head(hidden)
    before.sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    model.lm_head.weight.zero_()
    assert torch.equal(head(hidden), before)


def test_logits_are_computed_in_float32():
    model = tiny_model("llama", dtype=torch.bfloat16)
    hidden = torch.randn(3, 32, dtype=torch.bfloat16)
    logits = TokenHead(model, TOKENS)(hidden)
    assert logits.dtype == torch.float32
    weight = model.lm_head.weight[TOKENS].float()
    assert torch.equal(logits, nn.functional.linear(hidden.float(), weight))


def test_a_head_with_a_bias_or_an_adapter():
    hidden = torch.randn(3, 32)
    biased = nn.Linear(32, VOCABULARY)
    logits = head_logits(hidden, biased, torch.tensor(TOKENS))
    torch.testing.assert_close(logits, biased(hidden)[:, TOKENS])

    config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(tiny_model("llama"), config).eval()
    head = TokenHead(model, TOKENS)
    torch.testing.assert_close(head(hidden), output_head(model)(hidden)[:, TOKENS])
    with torch.no_grad():  # an adapter changes while it is tuned
        for parameter in output_head(model).parameters():
            parameter.mul_(2)
    torch.testing.assert_close(head(hidden), output_head(model)(hidden)[:, TOKENS])


def test_output_head_softcap_and_positions():
    model = tiny_model("gemma2")
    assert output_head(with_adapter(model)) is model.lm_head
    assert final_softcap(model) == 5.0
    assert final_softcap(tiny_model("llama")) is None
    assert max_positions(model) == 1024
    multimodal = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**SIZES, final_logit_softcapping=7.0)
    )
    holder = nn.Module()
    holder.config = multimodal
    assert final_softcap(holder) == 7.0


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="llm_name_or_path.*LlamaModel.*no output head"):
        output_head(tiny_model("llama").model)


def test_a_prompt_has_at_most_what_the_model_reads():
    assert prompt_limit(None, None) is None
    assert prompt_limit(500, None) == 500
    assert prompt_limit(None, 300, n_behind=1) == 299
    assert prompt_limit(300, 300) == 300
    words = "prompt_max_tokens: 300 is beyond the model's 300 positions.*at most 299, or to ~"
    with pytest.raises(ValueError, match=words):
        prompt_limit(300, 300, n_behind=1)


def test_max_positions_of_an_unknown_config():
    class Model:
        config = type("C", (), {"get_text_config": lambda self: object()})()

    assert max_positions(Model()) is None
