import pytest
import tokenizers
import torch
from prompt_texts import PAPER
from tokenizers import models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recbole_llamarec.ranking.model.head import LogitScaling
from recbole_llamarec.ranking.prompt.builder import PromptBuilder
from recbole_llamarec.ranking.verbalizer import Verbalizer, default_labels

PROMPT = "Candidate pool: (A) Heat (B) Alien\n\n### Response:"


def test_default_labels():
    assert default_labels(2) == ("A", "B")
    assert "".join(default_labels(28)) == "ABCDEFGHIJKLMNOPQRSTUVWXYZab"
    assert len(set(default_labels(52))) == 52
    for n in (1, 53):
        with pytest.raises(ValueError, match="verbalizer_labels"):
            default_labels(n)


def test_label_ids_continue_the_prompt(tokenizer):
    labels = default_labels(52)
    prompt = PromptBuilder(tokenizer, ["", "Heat", "Alien"], labels).text([1], [1, 2])
    verbalizer = Verbalizer.for_tokenizer(tokenizer, labels, prompt)
    assert verbalizer.labels == labels and len(set(verbalizer.token_ids)) == 52
    for label, token_id in zip(labels, verbalizer.token_ids, strict=True):
        whole = tokenizer(f"{prompt} {label}").input_ids
        assert whole == tokenizer(prompt).input_ids + [token_id]


def test_label_ids_continue_the_papers_prompt(tokenizer):
    """The label stands directly behind a line break."""
    labels = default_labels(20)
    prompts = PromptBuilder(tokenizer, ["", "Heat", "Alien"], labels, PAPER)
    prompt = prompts.text([1], [1, 2])
    verbalizer = Verbalizer.for_tokenizer(tokenizer, labels, prompt, PAPER.response)
    assert len(set(verbalizer.token_ids)) == 20
    ids = prompts.encode([1], [1, 2])
    for label, token_id in zip(labels, verbalizer.token_ids, strict=True):
        assert tokenizer(prompt + label).input_ids == [*ids, token_id]


def test_label_ids_depend_on_what_stands_before(llama):
    spaced = Verbalizer.for_tokenizer(llama, ["A", "B"], PROMPT)
    after_line = Verbalizer.for_tokenizer(llama, ["A", "B"], PROMPT + "\n", "{label}")
    assert llama.convert_ids_to_tokens(spaced.token_ids) == ["▁A", "▁B"]
    assert llama.convert_ids_to_tokens(after_line.token_ids) == ["A", "B"]


def test_label_of_two_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match="label 'Qzqj' .* adds . tokens") as caught:
        Verbalizer.for_tokenizer(tokenizer, ["A", "Qzqj"], PROMPT)
    assert "verbalizer_labels" in str(caught.value) and "prompt_response" in str(caught.value)


def test_labels_with_equal_ids_are_refused(tokenizer):
    with pytest.raises(ValueError, match="label 'A' .* same token as 'A'"):
        Verbalizer.for_tokenizer(tokenizer, ["A", "B", "A"], PROMPT)


def word_tokenizer(vocabulary: list[str], merges=(), **kwargs) -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, list(merges), **kwargs))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=kwargs.get("unk_token"))


def test_label_that_merges_with_the_prompt_is_refused():
    tokenizer = word_tokenizer(["(", "A", "B", "x", "(A"], [("(", "A")])
    assert Verbalizer.for_tokenizer(tokenizer, ["B", "x"], "x(", "{label}").token_ids == (2, 3)
    with pytest.raises(ValueError, match=r"label 'A' .* prompt's own last tokens.*\['\(A'\]"):
        Verbalizer.for_tokenizer(tokenizer, ["B", "A"], "x(", "{label}")


def test_unknown_label_is_refused():
    tokenizer = word_tokenizer(["<unk>", "A", "x"], unk_token="<unk>")
    with pytest.raises(ValueError, match="label 'B' .* unknown"):
        Verbalizer.for_tokenizer(tokenizer, ["A", "B"], "x", "{label}")


def test_response_and_number_of_labels_are_checked(gpt2_style):
    with pytest.raises(ValueError, match="prompt_response is ' A'"):
        Verbalizer.for_tokenizer(gpt2_style, ["A", "B"], PROMPT, " A")
    with pytest.raises(ValueError, match="2 or more labels"):
        Verbalizer.for_tokenizer(gpt2_style, ["A"], PROMPT)


@pytest.fixture
def verbalizer():
    return Verbalizer(("A", "B", "C", "D"), (11, 3, 90, 42))


def test_scores_are_the_full_heads_logits(verbalizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    input_ids = torch.randint(100, (3, 7))
    with torch.no_grad():
        logits = model(input_ids).logits[:, -1]
        hidden = model.model(input_ids).last_hidden_state[:, -1]
        scores = verbalizer.scores(hidden, model.lm_head, 3)
    torch.testing.assert_close(scores, logits[:, [11, 3, 90]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_with_bias_and_softcap(verbalizer, dtype):
    torch.manual_seed(0)
    head = nn.Linear(16, 100).to(dtype)
    hidden = (20 * torch.randn(5, 16)).to(dtype)
    full = hidden.float() @ head.weight.float().T + head.bias.float()
    expected = 3.0 * torch.tanh(full / 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = verbalizer.scores(hidden, head, 4, LogitScaling(softcap=3.0))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected[:, [11, 3, 90, 42]])


def test_scores_pass_gradients_to_the_hidden_states(verbalizer):
    hidden = torch.randn(2, 16, requires_grad=True)
    verbalizer.scores(hidden, nn.Linear(16, 100), 4).sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0


class ShiftedHead(nn.Linear):
    """A head whose weight alone does not say what it computes, like a quantised or adapted one."""

    def forward(self, hidden):
        return super().forward(hidden) + 1


def test_other_heads_are_called_as_a_whole(verbalizer):
    head, hidden = ShiftedHead(16, 100), torch.randn(2, 16)
    torch.testing.assert_close(
        verbalizer.scores(hidden, head, 2), head(hidden)[:, [11, 3]], check_dtype=False
    )


def test_more_candidates_than_labels_are_refused(verbalizer):
    with pytest.raises(ValueError, match="5 candidates and 4 verbalizer_labels"):
        verbalizer.scores(torch.zeros(1, 16), nn.Linear(16, 100), 5)
