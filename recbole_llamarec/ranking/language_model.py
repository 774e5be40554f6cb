"""Loading any causal language model, and reading its last hidden state without its logits.

Shapes: B prompts, T tokens, N tokens of a packed row, H hidden size, V vocabulary.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_llamarec.ranking.batching import length_batches, pad_right
from recbole_llamarec.ranking.embedded import (
    EMBEDDED_MODEL_NAME,
    embedded_model_directory,
    embedded_model_is_at_hand,
    load_gguf,
)
from recbole_llamarec.ranking.packing import (
    PACKED,
    pack,
    packed_batches,
    packed_states,
    use_packing,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which language model is loaded, and how; each field is the YAML key ``llm_`` + its name.

    Args:
        name_or_path: ``"embedded"`` (SmolLM2-135M-Instruct), a local directory, the path of a
            ``.gguf`` file, or a hub name such as ``org/name``.
        gguf_file: a GGUF file inside the hub repository or directory.
        revision: branch, tag or commit of the hub repository.
        dtype: ``"auto"`` or a dtype of that name; auto is bfloat16 on a GPU and on a CPU with
            instructions for it, else float32.
        load_in_4bit: NF4 with double quantisation and bfloat16 compute; needs bitsandbytes.
        load_in_8bit: 8-bit weights and activations (LLM.int8); needs bitsandbytes.
        attention: attention implementation of transformers, or ``"packed"``: prompts end to end
            without padding; ``"auto"`` is that on a CPU where the model allows it, else ``"sdpa"``,
            else ``"eager"``.
        cache_dir: where models are cached, both downloads and the converted embedded one.

    Raises:
        ValueError: naming every invalid key at once.
    """

    name_or_path: str = EMBEDDED
    gguf_file: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    attention: str = "auto"
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        errors = []
        if not isinstance(self.name_or_path, str) or not self.name_or_path.strip():
            errors.append(
                f"llm_name_or_path: {self.name_or_path!r} is no model; set 'embedded', a "
                "directory, a .gguf file or a hub name."
            )
        for key in ("gguf_file", "revision", "cache_dir"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or not value):
                errors.append(f"llm_{key}: {value!r} must be a text, or left out.")
        for key, allowed in (
            ("dtype", ("auto", *_DTYPES)),
            ("attention", ("auto", PACKED, *_ATTENTIONS)),
        ):
            value = getattr(self, key)
            if value not in allowed:
                errors.append(f"llm_{key}: {value!r} must be one of {', '.join(allowed)}.")
        for key in ("load_in_4bit", "load_in_8bit"):
            if not isinstance(getattr(self, key), bool):
                errors.append(f"llm_{key}: {getattr(self, key)!r} must be True or False.")
        if not errors:
            errors = self._contradictions()
        if errors:
            raise ValueError("\n".join(errors))

    def _contradictions(self) -> list[str]:
        errors = []
        complete = self.name_or_path == EMBEDDED or _is_gguf(self.name_or_path)
        for key in ("gguf_file", "revision"):
            if complete and getattr(self, key) is not None:
                errors.append(
                    f"llm_{key}: {getattr(self, key)!r} has no meaning beside llm_name_or_path: "
                    f"{self.name_or_path!r}, which is one model already; leave it out."
                )
        if self.quantization and (self.gguf_file or _is_gguf(self.name_or_path)):
            errors.append(
                f"llm_{self.quantization}: True cannot be had from a GGUF file, which is unpacked "
                "when it is loaded; set it to False, or name a model saved as safetensors."
            )
        if self.load_in_4bit and self.load_in_8bit:
            errors.append("llm_load_in_4bit and llm_load_in_8bit: set one of them to False.")
        return errors

    @property
    def quantization(self) -> str | None:
        """The key that asks for quantised weights, without its ``llm_``; None if neither does."""
        return next((k for k in ("load_in_4bit", "load_in_8bit") if getattr(self, k)), None)


def check_language_model(settings: LanguageModelSettings) -> None:
    """Find out before any training whether the language model can be loaded.

    Cheap but in one case: an embedded model that is neither cached nor installed is fetched here,
    so that a missing network shows now. A hub name is not checked.

    Args:
        settings: what to load.

    Raises:
        FileNotFoundError: the path, or the GGUF file in it, does not exist.
        ImportError: 4-bit weights are asked for, and bitsandbytes cannot be imported.
        RuntimeError: the embedded model cannot be obtained.
    """
    name = settings.name_or_path
    path = Path(name).expanduser()
    if name == EMBEDDED:
        if not embedded_model_is_at_hand(settings.cache_dir):
            embedded_model_directory(settings.cache_dir)
    elif _is_gguf(name):
        if not path.is_file():
            raise FileNotFoundError(
                f"llm_name_or_path: {name!r} does not exist; give the path of an existing .gguf "
                "file. A GGUF file inside a hub repository is named with llm_gguf_file."
            )
    elif path.is_dir():
        needed = settings.gguf_file or "config.json"
        if not (path / needed).is_file():
            raise FileNotFoundError(
                f"llm_{'gguf_file' if settings.gguf_file else 'name_or_path'}: {name!r} holds no "
                f"{needed}; give a directory that save_pretrained of transformers has written, "
                "or one with a GGUF file named in llm_gguf_file."
            )
    elif _is_clearly_a_path(name):
        raise FileNotFoundError(
            f"llm_name_or_path: {name!r} does not exist; give an existing directory or .gguf "
            "file, a hub name such as org/name, or 'embedded'."
        )
    if settings.quantization:
        _import_bitsandbytes(settings.quantization)


def load_language_model(
    settings: LanguageModelSettings, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, frozen and in evaluation mode.

    Args:
        settings: what to load, and how.
        device: where the model goes.

    Returns:
        The model (no parameter requires a gradient) and its tokenizer.

    Raises:
        FileNotFoundError, ImportError, RuntimeError: as :func:`check_language_model`, and where
            transformers finds no model of that name.
        ValueError: transformers cannot load this model in this way.
    """
    check_language_model(settings)
    attentions = {"auto": ("sdpa", "eager"), PACKED: ("sdpa", "eager")}
    model: Any
    try:
        model, tokenizer, attention = _load_first(
            attentions.get(settings.attention, (settings.attention,)), settings, device
        )
    except OSError as error:
        raise FileNotFoundError(
            f"llm_name_or_path: {settings.name_or_path!r} could not be loaded: {error} Check the "
            "name and the network, or give a local directory, a .gguf file or 'embedded'."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"llm_name_or_path: {settings.name_or_path!r} cannot be loaded with llm_attention: "
            f"{settings.attention}: {error} Try llm_attention: eager, which every model has, or "
            "another model."
        ) from error
    # This name goes into the adapter's adapter_config.json.
    embedded = settings.name_or_path == EMBEDDED
    model.name_or_path = EMBEDDED_MODEL_NAME if embedded else settings.name_or_path
    model.config.name_or_path = model.name_or_path
    model.eval().requires_grad_(False)
    model.packs_prompts = _pack_if_asked(model, settings, attention)
    return model, tokenizer


def last_hidden_of(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return each prompt's final hidden state at its last token, without computing any logits.

    Args:
        model: causal language model from :func:`load_language_model`, plain or wrapped by PEFT.
        prompts: token ids of each prompt, at least one token each.

    Returns:
        `[B, H]`, as :func:`last_hidden` does, which is used where the model cannot be packed.
    """
    return hidden_at(model, prompts, [[len(prompt) - 1] for prompt in prompts])


def hidden_at(
    model: nn.Module, prompts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]
) -> Tensor:
    """Return final hidden states at some tokens of each prompt, without computing any logits.

    Args:
        model: causal language model from :func:`load_language_model`, plain or wrapped by PEFT.
        prompts: token ids of each prompt, at least one token each.
        places: which tokens of each prompt are read, counted from 0.

    Returns:
        `[P, H]`, P places of all prompts in their order; differentiable where gradients are
        enabled.
    """
    base: Any = _base_model(model)
    device = next(base.parameters()).device
    if getattr(base, "packs_prompts", False):
        packing = pack(prompts, device)
        read = [packing.rows(i)[list(own)] for i, own in enumerate(places)]
        rows = torch.from_numpy(np.concatenate(read)).to(device)  # [P]
        with _only_rows(_last_feed_forward(base), rows.unique()):
            return packed_states(base.get_decoder(), packing)[rows]  # [P, H]
    input_ids, _ = pad_right(prompts, device)  # [B, T]
    longest = input_ids.shape[1]
    read = [i * longest + np.asarray(own, dtype=np.int64) for i, own in enumerate(places)]
    rows = torch.from_numpy(np.concatenate(read)).to(device)  # [P], in [B * T]
    with _only_rows(_last_feed_forward(base), rows.unique()):
        hidden = base.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[rows]  # [P, H]


def prompt_batches(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[np.ndarray]:
    """Group prompts for :func:`last_hidden_of`: by what they share, or by length to pad little.

    Args:
        model: causal language model, plain or wrapped by PEFT.
        prompts: token ids of each prompt.
        max_tokens: tokens of one forward pass.

    Returns:
        list of int64 index arrays; together they are a permutation of all prompts.
    """
    if getattr(_base_model(model), "packs_prompts", False):
        return packed_batches(prompts, max_tokens)
    return length_batches([len(prompt) for prompt in prompts], max_tokens)


def last_hidden(model: nn.Module, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the final hidden state of padded prompts at their last token, without any logits.

    No attention mask is passed: in a causal model the padding on the right comes after every real
    token, so it cannot influence the state that is read, and attention without a mask takes the
    faster kernels.

    Args:
        model: causal language model, plain or wrapped by PEFT.
        input_ids: `[B, T]` int64, padded on the right with any token id.
        lengths: `[B]` int64, the number of real tokens of each prompt, at least 1.

    Returns:
        `[B, H]` states after the final norm, what the output head reads; differentiable where
        gradients are enabled.
    """
    # PEFT puts its layers inside the base model, so the base model's own forward has the adapter.
    base: Any = _base_model(model)
    n_prompts, longest = input_ids.shape
    starts = longest * torch.arange(n_prompts, device=input_ids.device)  # [B]
    ends = starts + lengths.to(input_ids.device) - 1  # [B], in [B * T]
    with _only_rows(_last_feed_forward(base), ends):
        hidden = base.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[ends]  # [B, T, H] -> [B, H]


def output_head(model: nn.Module) -> nn.Module:
    """Return the layer that turns hidden states into logits.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The head, with `weight` `[V, H]` and perhaps `bias` `[V]`.

    Raises:
        ValueError: the model has none, so it is no causal language model.
    """
    base: Any = _base_model(model)
    head = base.get_output_embeddings()
    if head is None:
        raise ValueError(
            f"llm_name_or_path: {base.name_or_path!r} is a {type(base).__name__}, which has no "
            "output head; give a causal language model."
        )
    return head


def head_logits(
    hidden: Tensor, head: nn.Module, token_ids: Tensor, softcap: float | None = None
) -> Tensor:
    """Return the logits of some tokens, computed in float32 from their rows of the head only.

    A head that is quantised or carries an adapter is called as a whole instead.

    Args:
        hidden: `[B, H]`, final hidden states.
        head: the model's output layer, H to the vocabulary, with or without a bias.
        token_ids: `[K]` int64, on the device of `hidden`.
        softcap: what :func:`final_softcap` returns.

    Returns:
        `[B, K]`, float32.
    """
    # The exact types: a quantised head or one with an adapter is a subclass of either.
    if (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and head.weight.is_floating_point()
    ):
        bias = None if head.bias is None else head.bias[token_ids].float()  # [K]
        with torch.autocast(hidden.device.type, enabled=False):
            weight = head.weight[token_ids].float()  # [K, H]
            logits = nn.functional.linear(hidden.float(), weight, bias)  # [B, K]
    else:
        logits = head(hidden)[:, token_ids].float()  # [B, V] -> [B, K]
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def final_softcap(model: nn.Module) -> float | None:
    """Return the cap c that some models put on their logits, `c * tanh(logits / c)` (Gemma 2).

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The cap, or None.
    """
    base: Any = _base_model(model)
    return getattr(base.config.get_text_config(), "final_logit_softcapping", None)


def max_positions(model: nn.Module) -> int | None:
    """Return how many tokens a prompt may have for this model.

    Args:
        model: causal language model, plain or wrapped by PEFT.

    Returns:
        The limit in tokens, or None where the model's config states none.
    """
    base: Any = _base_model(model)
    return getattr(base.config.get_text_config(), "max_position_embeddings", None)


def _last_feed_forward(base: Any) -> nn.Module | None:
    """Return the last layer's feed-forward network, where it has its usual name."""
    layers = getattr(base.get_decoder(), "layers", None)
    return getattr(layers[-1], "mlp", None) if layers else None


@contextmanager
def _only_rows(module: nn.Module | None, rows: Tensor) -> Iterator[None]:
    """Within, a module that works on each position alone computes these and returns 0 elsewhere.

    Nothing behind the last layer's feed-forward network mixes positions, so that only those that
    are read need it.

    Args:
        module: its input and output are ``[..., H]``; None changes nothing.
        rows: positions, counted over all dimensions but the last.
    """
    if module is None:
        yield
        return
    shape = torch.Size()

    def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0].flatten(0, -2)[rows][None], *inputs[1:])  # [1, rows, H]

    def put_back(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        whole = output.new_zeros(shape).flatten(0, -2)  # [B * T, H]
        return whole.index_copy(0, rows, output[0]).view(shape)

    hooks = [module.register_forward_pre_hook(select), module.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _base_model(model: nn.Module) -> nn.Module:
    unwrap = getattr(model, "get_base_model", None)  # only a PeftModel has it
    return model if unwrap is None else unwrap()


def _is_gguf(name: str) -> bool:
    return name.lower().endswith(".gguf")


def _is_clearly_a_path(name: str) -> bool:
    """Tell a path from a hub name, which has the form `name` or `org/name`."""
    starts = ("./", "../", ".\\", "..\\", "~")
    return os.path.isabs(name) or name.startswith(starts) or name in (".", "..")


def _source(settings: LanguageModelSettings) -> tuple[str, str | None]:
    """Return the directory or hub name for transformers, and the GGUF file in it."""
    if settings.name_or_path == EMBEDDED:
        return str(embedded_model_directory(settings.cache_dir)), None
    path = Path(settings.name_or_path).expanduser()
    if _is_gguf(settings.name_or_path):
        return str(path.parent), path.name
    return str(path) if path.is_dir() else settings.name_or_path, settings.gguf_file


def _dtype(settings: LanguageModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        on_slow_cpu = device.type == "cpu" and not _cpu_multiplies_bfloat16()
        return torch.float32 if on_slow_cpu else torch.bfloat16
    return _DTYPES[settings.dtype]


def _cpu_multiplies_bfloat16() -> bool:
    """Tell whether the processor has instructions for products of bfloat16 matrices."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _pack_if_asked(model: Any, settings: LanguageModelSettings, attention: str) -> bool:
    """Switch the model to packed attention where that is asked for and possible."""
    on_cpu = model.device.type == "cpu"
    if settings.attention != PACKED and not (settings.attention == "auto" and on_cpu):
        return False
    if use_packing(model, attention):
        return True
    if settings.attention == PACKED:
        raise ValueError(
            f"llm_attention: packed: {settings.name_or_path!r} does not keep packed prompts apart; "
            "set llm_attention to auto, sdpa or eager."
        )
    _logger.info("%s cannot be packed; its prompts are padded.", settings.name_or_path)
    return False


def _load_first(
    attentions: Sequence[str], settings: LanguageModelSettings, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load with the first of some attention implementations that the model has; return it, too."""
    source, gguf_file = _source(settings)
    where = {"revision": settings.revision, "cache_dir": settings.cache_dir}
    where = {key: value for key, value in where.items() if value is not None}
    for attention in attentions:
        options = {"dtype": _dtype(settings, device), "attn_implementation": attention}
        model: Any
        try:
            if gguf_file is None:
                model, tokenizer = _load(source, settings.quantization, device, where, options)
            else:
                model, tokenizer = load_gguf(source, gguf_file, **where, **options)
                model.to(device)
            return model, tokenizer, attention
        except ValueError:
            if attention == attentions[-1]:
                raise
    raise AssertionError("no attention implementation was given")


def _load(
    source: str, quantization: str | None, device: torch.device, where: dict, options: dict
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    tokenizer = AutoTokenizer.from_pretrained(source, **where)
    if quantization:  # transformers leaves the output head unquantised
        options["quantization_config"] = BitsAndBytesConfig(
            **{quantization: True},
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_threshold=0.0,  # activations are 8 bits wide throughout: outliers cost time
        )
    model = AutoModelForCausalLM.from_pretrained(
        source, device_map={"": device}, **where, **options
    )
    if quantization == "load_in_4bit":
        # On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a layer at its first forward in
        # evaluation mode for a kernel without gradients, and silently trains nothing afterwards.
        layer: Any
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    return model, tokenizer


def _import_bitsandbytes(key: str) -> None:
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(
            f"llm_{key}: True needs bitsandbytes, which cannot be imported ({error}); "
            f"`pip install bitsandbytes`, or set llm_{key} to False."
        ) from error
