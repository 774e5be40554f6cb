"""Which language model is loaded, and how: the keys ``llm_…``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recbole_llamarec.keys import SWITCH, TEXT, check_fields, key, one_of, optional
from recbole_llamarec.path_rules import PATH
from recbole_llamarec.ranking.model.packed_attention import PACKED

EMBEDDED = "embedded"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class LanguageModelSettings:
    """Which language model is loaded, and how; each field is the YAML key ``llm_`` + its name.

    Raises:
        ValueError: naming every invalid key at once.
    """

    name_or_path: str = key(
        EMBEDDED,
        PATH,
        "embedded (SmolLM2-135M-Instruct, no model hub needed), a directory, a .gguf file, or a "
        "name on the Hugging Face hub.",
    )
    gguf_file: str | None = key(
        None, optional(PATH), "A GGUF file inside that directory or hub repository."
    )
    revision: str | None = key(None, optional(TEXT), "Revision on the hub.")
    dtype: str = key(
        "auto",
        one_of("auto", *DTYPES),
        "auto (on a GPU bfloat16 where it has that, else float16; on a CPU bfloat16 where it is "
        "the faster, else float32), float32, bfloat16 or float16.",
    )
    load_in_4bit: bool = key(
        False,
        SWITCH,
        "NF4 with double quantization (QLoRA), computed in what llm_dtype: auto takes; needs "
        "bitsandbytes.",
    )
    load_in_8bit: bool = key(
        False, SWITCH, "8-bit weights and activations (LLM.int8); needs bitsandbytes."
    )
    attention: str = key(
        "auto",
        one_of("auto", PACKED, *ATTENTIONS),
        "packed (on a CPU only): prompts end to end without padding, what they have in common "
        "only once. auto: that on a CPU, where the model allows it, else sdpa, else eager. Or any "
        "attention implementation of transformers.",
    )
    cache_dir: str | None = key(
        None,
        optional(PATH),
        "Folder of the converted embedded model, of adapters/, which lora_adapter: auto looks "
        "through, and of what transformers fetches from the hub. ~ is the environment variable "
        "RECBOLE_LLAMAREC_CACHE, then the user's cache directory; for what is fetched, "
        "transformers' own cache.",
    )
    backend: str = key(
        "local",
        one_of("local", "http"),
        "local: the model is loaded here. http: an OpenAI-compatible server has it (llm_http_url), "
        "only the tokenizer of llm_name_or_path is loaded, and nothing is tuned (epochs: 0).",
    )

    def __post_init__(self) -> None:
        check_fields(self, "llm_")
        if errors := self._contradictions():
            raise ValueError("\n".join(errors))

    def _contradictions(self) -> list[str]:
        errors = []
        complete = self.name_or_path == EMBEDDED or is_gguf(self.name_or_path)
        for name in ("gguf_file", "revision"):
            if complete and getattr(self, name) is not None:
                errors.append(
                    f"llm_{name}: {getattr(self, name)!r} has no meaning beside llm_name_or_path: "
                    f"{self.name_or_path!r}, which is one model already; leave it out."
                )
        if self.quantization and (self.gguf_file or is_gguf(self.name_or_path)):
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


def is_gguf(name: str) -> bool:
    """Whether ``llm_name_or_path`` names a GGUF file."""
    return name.lower().endswith(".gguf")
