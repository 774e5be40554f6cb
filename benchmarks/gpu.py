"""What a GPU makes of ranking and tuning at the shape of Llama-2-7B, and whether it ranks alike.

    python benchmarks/gpu.py

Weights are random and made on the device, so that nothing is downloaded. The page tells tokens a
second, the share of the device's own rate of matrix products, and memory; then how far the scores
of a small real model are from the CPU's in float32; then how ranking goes on where memory runs out.
``--device cpu --small`` tries the script out with two small layers.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from efficiency import device_name, made_up_titles
from machine import without_folder
from results import write_whole

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.hardware import auto_dtype, prefers_bfloat16
from recbole_llamarec.ranking.model.loading import load_tokenizer
from recbole_llamarec.ranking.model.settings import LanguageModelSettings
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.scoring.language_model import LanguageModel
from recbole_llamarec.scoring.scorer import ScorerParts
from recbole_llamarec.settings import LlamaRecSettings
from recbole_llamarec.tuning.step import loss_scaler, optimizer_step

OUT = Path(__file__).parent / "results" / "gpu"
LLAMA_2_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 4096,
}
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
N_CANDIDATES = 20
N_HISTORY = 20
N_ITEMS = 100
TITLE_TOKENS = 8
SPARE_BYTES = 2**31  # of a GPU beside the weights, where memory is to run out
SPARE_TOKENS = 2000  # that stand for them on a CPU
TOO_LARGE = 10**6  # tokens of a pass


@dataclass(frozen=True)
class Prompts:
    """Users of a made-up catalogue: their histories and candidates, and where the target stands."""

    titles: list[str]
    histories: list[list[int]]
    pools: list[list[int]]
    targets: np.ndarray  # float32 [users, K]


class CountingBudget(TokenBudget):
    """A budget that counts how often memory ran out."""

    failures = 0

    def cut(self, n_tokens: int) -> None:
        """Count, and cut."""
        self.failures += 1
        super().cut(n_tokens)


def main(arguments: list[str] | None = None) -> None:
    """Measure everything, then write the page."""
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    tokenizer = load_tokenizer(LanguageModelSettings(name_or_path=options.llm))
    prompts = made_up_prompts(tokenizer, options.prompts, options.seed)
    rate = matrix_rate(device, 512 if options.small else 8192)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        n_weights = write_random_model(Path(folder), tokenizer, options.small, device)
        rows = []
        for weights in options.weights:
            llm = LanguageModelSettings(name_or_path=folder, load_in_4bit=weights == "4-bit")
            rows += measured(llm, weights, prompts, options, n_weights, rate)
    alike = compared(options.llm, prompts, device)
    page = written(options, rows, alike, rate)
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "README.md", page.encode())
    print(page)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options; exits with a message where one cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the page")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="two small layers, to try it out")
    parser.add_argument(
        "--weights", nargs="+", default=["16-bit", "4-bit"], choices=["16-bit", "4-bit"]
    )
    parser.add_argument("--prompts", type=int, default=64, help="users that are ranked")
    parser.add_argument("--tokens", type=int, default=8192, help="of a pass in ranking")
    parser.add_argument("--train-tokens", type=int, default=2048, help="of a pass in tuning")
    parser.add_argument("--llm", default="embedded", help="whose scores are compared")
    parser.add_argument("--scratch", type=Path, help="folder with room for 14 GB of weights")
    parser.add_argument("--seed", type=int, default=2020)
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no GPU; try --device cpu --small")
    if options.prompts < N_CANDIDATES:
        parser.error(f"--prompts {options.prompts}: it must be at least {N_CANDIDATES}")
    return options


# --- what is measured ----------------------------------------------------------------------------


def made_up_prompts(tokenizer: Any, count: int, seed: int) -> Prompts:
    """Users with full histories and pools; titles have :data:`TITLE_TOKENS` tokens."""
    generator = random.Random(seed)
    titles = ["", *made_up_titles(tokenizer, TITLE_TOKENS, N_ITEMS, generator)]
    drawn = [
        generator.sample(range(1, N_ITEMS + 1), N_HISTORY + N_CANDIDATES) for _ in range(count)
    ]
    targets = np.eye(N_CANDIDATES, dtype=np.float32)
    places = [generator.randrange(N_CANDIDATES) for _ in drawn]
    histories = [ids[:N_HISTORY] for ids in drawn]
    return Prompts(titles, histories, [ids[N_HISTORY:] for ids in drawn], targets[places])


def write_random_model(folder: Path, tokenizer: Any, small: bool, device: torch.device) -> int:
    """Write a model of random weights; return how many weights multiply each token."""
    shape = SMALL if small else LLAMA_2_7B
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **shape)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=auto_dtype(device.type, prefers_bfloat16(device))
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() == 2)


def language_model(llm: LanguageModelSettings, titles: list[str], device: torch.device):
    """The product's scorer, with a new adapter."""
    settings = LlamaRecSettings(
        llm=llm,
        ranking_method="verbalizer",
        lora_adapter=None,
        rerank_candidates=N_CANDIDATES,
        prompt_max_history=N_HISTORY,
    )
    return LanguageModel(ScorerParts(settings, None, titles, len(titles), device, 1))


def measured(
    llm: LanguageModelSettings,
    weights: str,
    prompts: Prompts,
    options: argparse.Namespace,
    n_weights: int,
    rate: float,
) -> list[list[str]]:
    """Rows of the table for one kind of weights: ranking, tuning, and memory that runs out."""
    device = torch.device(options.device)
    gc.collect()  # the model before
    if device.type == "cuda":
        torch.cuda.empty_cache()
    scorer = language_model(llm, prompts.titles, device)
    users = zip(prompts.histories, prompts.pools, strict=True)
    encoded = [scorer.ranker.encode(*user) for user in users]
    n_tokens = sum(own.n_tokens for own in encoded)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-4)
    scaler = loss_scaler(scorer.ranker.model)

    def rank(budget: TokenBudget, count: int | None = None) -> None:
        rank_all(scorer.ranker, prompts.histories[:count], prompts.pools[:count], budget)

    def tune(count: int | None = None) -> None:
        budget = TokenBudget(options.train_tokens, "train_batch_tokens")
        loss = scorer.ranker.losses["label"]
        own = encoded[:count], prompts.targets[:count]
        optimizer_step(scorer.ranker, *own, loss, optimizer, budget, None, scaler=scaler)

    budget = TokenBudget(options.tokens, "llm_batch_tokens")
    rows = []
    for name, compute, n_products in (
        ("ranking", lambda count=None: rank(budget, count), 1),
        ("tuning", tune, 2),  # frozen weights have no gradient of their own
    ):
        compute(1)  # kernels are chosen and loaded
        seconds, peak = timed(compute, device)
        flops = 2 * n_products * n_weights * n_tokens / seconds
        rows.append(
            [weights, name, f"{n_tokens / seconds:,.0f}", f"{100 * flops / rate:.1f} %", peak, "-"]
        )
    too_large = CountingBudget(TOO_LARGE, "llm_batch_tokens")
    with little_memory(scorer.ranker.model, device):
        rank(too_large)
    recovered = f"{too_large.failures} times, then {too_large.tokens:,} tokens a pass"
    return [*rows, [weights, "ranking, memory runs out", "-", "-", "-", recovered]]


def timed(compute: Callable[[], object], device: torch.device) -> tuple[float, str]:
    """Seconds that it takes, and the device's peak memory in GiB, where that is counted."""
    gc.collect()
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    compute()
    if is_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if is_gpu else "-"
    return seconds, peak


def matrix_rate(device: torch.device, size: int, rounds: int = 20) -> float:
    """Operations a second of products of square matrices, in the precision of ``auto``."""
    dtype = auto_dtype(device.type, prefers_bfloat16(device))
    one, other = torch.randn(2, size, size, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(rounds):
            one @ other

    multiply()
    seconds, _ = timed(multiply, device)
    return 2 * size**3 * rounds / seconds


@contextmanager
def little_memory(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Within, a GPU has little memory to spare; on a CPU a hook fails where a pass is too large."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        share = (torch.cuda.memory_reserved(device) + SPARE_BYTES) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return

    def fail(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[:-1].numel() > SPARE_TOKENS:
            raise torch.OutOfMemoryError("stands for a GPU's")

    decoder = model.get_base_model().get_decoder()  # type: ignore[operator]
    hook = decoder.layers[0].register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


def compared(llm: str, prompts: Prompts, device: torch.device) -> str:
    """How the device's scores of a real model differ from the CPU's in float32."""
    scores = []
    for where, dtype in ((torch.device("cpu"), "float32"), (device, "auto")):
        settings = LanguageModelSettings(name_or_path=llm, dtype=dtype)
        scorer = language_model(settings, prompts.titles, where)
        few = prompts.histories[:N_CANDIDATES], prompts.pools[:N_CANDIDATES]
        scores.append(rank_all(scorer.ranker, *few, TokenBudget(2048, "llm_batch_tokens")))
    difference = (scores[0] - scores[1]).abs()  # [prompts, K]
    same = (scores[0].argsort(1) == scores[1].argsort(1)).all(1).sum()
    return (
        f"Scores of {without_folder(llm)} on the CPU in float32 and on this device in its own "
        f"precision, of {len(difference)} prompts: they differ by at most {difference.max():.2g} "
        f"and on average by {difference.mean():.2g} nats; {same} of {len(difference)} prompts have "
        "the same order."
    )


# --- the page ------------------------------------------------------------------------------------


def written(options: argparse.Namespace, rows: list[list[str]], alike: str, rate: float) -> str:
    """The page in Markdown."""
    device = torch.device(options.device)
    dtype = str(auto_dtype(device.type, prefers_bfloat16(device))).removeprefix("torch.")
    shape = "two small layers, to try the script out" if options.small else "Llama-2-7B's shape"
    head = ["weights", "what", "tokens/s", "of the matrix rate", "peak GiB", "memory ran out"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"""# A GPU at the shape of Llama-2-7B

Made by `python benchmarks/gpu.py` on {device_name(options.device)}, torch {torch.__version__}:
random weights of {shape}, vocabulary of {without_folder(options.llm)},
{options.prompts} prompts of {N_HISTORY} history items and {N_CANDIDATES} candidates of
{TITLE_TOKENS} tokens each, passes of {options.tokens:,} tokens in ranking and
{options.train_tokens:,} in tuning. "16-bit" is {dtype}, as `llm_dtype: auto` takes it.
The device multiplies large matrices at {rate / 1e12:.3g} TFLOP/s; shares count the layers' products
alone.

{table}

{alike}
"""


if __name__ == "__main__":
    main()
