"""Time of ranking by the verbalizer against generating the ranked titles, over title lengths.

Figure 3 of LlamaRec (Yue et al. 2023, arXiv 2311.02089, section 4.4), with any language model:

    python benchmarks/efficiency.py --out FOLDER

One prompt at a time, of 20 history items and 20 candidates, whose made-up titles all have the same
number of tokens. Generating is greedy and writes as many tokens as the candidates' titles have.
Writes NAME.json, NAME.md and NAME.svg (``--name``); lengths that the JSON file already holds are
not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from efficiency_report import import_pyplot, plot, table
from machine import cpu_name, without_folder
from results import read_report, write_whole
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from generation import Generating
from generation.generating import WORDING

from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.model.batching import TokenBudget
from recbole_llamarec.ranking.model.forward import forward_for
from recbole_llamarec.ranking.model.loading import LanguageModelSettings, load_language_model
from recbole_llamarec.ranking.prompt.pieces import ANCHOR
from recbole_llamarec.ranking.protocol import RankerParts, ranker_class_of
from recbole_llamarec.ranking.rank import rank_all
from recbole_llamarec.settings import LlamaRecSettings

LENGTHS = (5, 10, 15, 20, 25, 30, 35, 40)
N_HISTORY = 20
N_CANDIDATES = 20
N_ITEMS = 100
WARM_UP_TOKENS = 8
BATCH_TOKENS = 1  # a prompt that exceeds it makes a batch of its own


class Rankers(NamedTuple):
    """Both methods over the same model and titles."""

    verbalizing: Letters
    generating: Generating


def main(arguments: list[str] | None = None) -> None:
    """Measure the lengths that are still missing, then write the table and the plot."""
    options = parse_arguments(arguments)
    import_pyplot()  # before minutes of measuring, not after
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    model, tokenizer = load_language_model(LanguageModelSettings(name_or_path=options.llm), device)
    forward = forward_for(model, "auto", device)
    file = options.out / f"{options.name}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    report = started_report(file, options, model)
    missing = [n for n in options.lengths if str(n) not in report["lengths"]]
    with tqdm(total=2 * options.rounds * len(missing), unit="prompt", ncols=100) as progress:
        for length in missing:
            progress.set_description(f"{length} tokens a title")
            rankers = build_rankers(model, tokenizer, forward, length, options.seed)
            measured = measure(rankers, length, options.rounds, options.seed, progress)
            report["lengths"][str(length)] = measured
            write_whole(file, (json.dumps(report, indent=2) + "\n").encode())
    write_whole(file.with_suffix(".md"), table(report).encode())
    plot(report, file.with_suffix(".svg"))
    print(table(report))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options; exits with a message where one is out of its range."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the three files")
    parser.add_argument("--name", default="efficiency", help="of the three files")
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, help="tokens a title, default 5 to 40"
    )
    parser.add_argument("--rounds", type=int, default=5, help="times of each method a length")
    parser.add_argument("--llm", default="embedded", help="as llm_name_or_path")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=2020)
    parser.add_argument("--overwrite", action="store_true", help="measure everything again")
    options = parser.parse_args(arguments)
    if min(options.lengths) < 1:
        parser.error(f"--lengths {min(options.lengths)}: a title has at least 1 token")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: it must be at least 1")
    return options


# --- measuring -----------------------------------------------------------------------------------


def build_rankers(model, tokenizer, forward, length: int, seed: int) -> Rankers:
    """Both rankers for a catalogue of titles of ``length`` tokens each.

    Raises:
        ValueError: the prompts change the titles, so that they have other lengths.
    """
    titles = ["", *made_up_titles(tokenizer, length, N_ITEMS, random.Random(seed))]
    settings = LlamaRecSettings(
        rerank_candidates=N_CANDIDATES,
        prompt=WORDING,
        prompt_max_history=N_HISTORY,
        prompt_max_title_tokens=length,
    )
    parts = RankerParts(model, tokenizer, forward, titles, settings)
    rankers = Rankers(*(ranker_class_of(name).build(parts) for name in ("verbalizer", "generate")))
    if any(ranker.prompts.titles[1:] != titles[1:] for ranker in rankers):
        raise ValueError(f"Titles of {length} tokens were changed in the prompt.")
    return rankers


def made_up_titles(tokenizer, length: int, count: int, generator: random.Random) -> list[str]:
    """Distinct titles of whole words of the tokenizer's vocabulary.

    Args:
        tokenizer: any tokenizer of transformers.
        length: tokens of each title, as it stands in a prompt behind a space.
        count: titles.
        generator: draws the words.

    Returns:
        ``count`` titles of exactly ``length`` tokens each.

    Raises:
        ValueError: the vocabulary has too few words.
    """
    words = vocabulary_words(tokenizer)
    titles: dict[str, None] = {}  # a set that keeps the order
    for _ in range(100 * count if words else 0):
        title = " ".join(generator.choices(words, k=length))
        if title not in titles and token_counts(tokenizer, [title]) == [length]:
            titles[title] = None
        if len(titles) == count:
            return list(titles)
    raise ValueError(
        f"The tokenizer's {len(words)} words make only {len(titles)} of {count} titles of {length} "
        "tokens: leave out this length, or take another --llm."
    )


def vocabulary_words(tokenizer) -> list[str]:
    """The English-looking words that are one token behind a space, in alphabetic order."""
    vocabulary = sorted(tokenizer.get_vocab())
    texts = {tokenizer.convert_tokens_to_string([token]).strip() for token in vocabulary}
    words = sorted(text for text in texts if text.isascii() and text.isalpha() and len(text) > 2)
    counts = token_counts(tokenizer, words)
    return [word for word, count in zip(words, counts, strict=True) if count == 1]


def token_counts(tokenizer, texts: list[str]) -> list[int]:
    """Tokens of each text behind a space, as in a prompt."""
    if not texts:
        return []
    pieces = [ANCHOR, *(f"{ANCHOR} {text}" for text in texts)]
    anchor, *rows = tokenizer(pieces, add_special_tokens=False, verbose=False).input_ids
    return [len(row) - len(anchor) for row in rows]


def measure(rankers: Rankers, length: int, rounds: int, seed: int, progress: tqdm) -> dict:
    """Time both methods in turn, each round on another prompt, after one round to warm up.

    Args:
        rankers: both methods.
        length: tokens a title.
        rounds: times of each method.
        seed: draws the prompts' items.
        progress: bar that is moved on by 1 with each prompt.

    Returns:
        Every time and the medians, in seconds; their ratio; tokens of the prompts and of the list.
    """
    generator = random.Random(seed)
    n_new_tokens = N_CANDIDATES * length
    verbalizing, generating = [], []
    n_prompt_tokens = set()
    budget = TokenBudget(BATCH_TOKENS, "llm_batch_tokens")
    for round_number in range(-1, rounds):  # round -1 warms up, and is not counted
        items = generator.sample(range(1, N_ITEMS + 1), N_HISTORY + N_CANDIDATES)
        history, candidates = items[:N_HISTORY], items[N_HISTORY:]
        start = time.perf_counter()
        rank_all(rankers.verbalizing, [history], [candidates], budget)
        middle = time.perf_counter()
        prompt = rankers.generating.prompts.encode(history, candidates)
        n_written = n_new_tokens if round_number >= 0 else WARM_UP_TOKENS
        rankers.generating.write([prompt], [n_written], n_lines=None)
        end = time.perf_counter()
        if round_number >= 0:
            verbalizing.append(middle - start)
            generating.append(end - middle)
            n_prompt_tokens.add(len(rankers.verbalizing.prompts.encode(history, candidates)))
            progress.update(2)
    medians = statistics.median(verbalizing), statistics.median(generating)
    return {
        "prompt_tokens": max(n_prompt_tokens),
        "prompt_tokens_generate": len(prompt),
        "new_tokens": n_new_tokens,
        "verbalizer_s": verbalizing,
        "generate_s": generating,
        "verbalizer_median_s": medians[0],
        "generate_median_s": medians[1],
        "ratio": medians[1] / medians[0],
    }


# --- conditions ----------------------------------------------------------------------------------


def started_report(file: Path, options: argparse.Namespace, model) -> dict[str, Any]:
    """The report with the lengths measured before, or an empty one.

    Raises:
        ValueError: what the file holds was measured otherwise, or elsewhere.
    """
    conditions = {
        "llm": without_folder(model.name_or_path),
        "rounds": options.rounds,
        "seed": options.seed,
        "n_history": N_HISTORY,
        "n_candidates": N_CANDIDATES,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    lengths: dict[str, Any] = {}
    if file.is_file() and not options.overwrite:
        before = read_report(file, "conditions")
        if changed := [
            k for k, v in conditions.items() if before.get("conditions", {}).get(k) != v
        ]:
            raise ValueError(
                f"{file} was measured under other conditions ({', '.join(changed)}), so that its "
                "times cannot be compared: name another --out, or measure it anew by --overwrite."
            )
        lengths = before.get("lengths", {})
    return {"command": command(options), "conditions": conditions, "lengths": lengths}


def command(options: argparse.Namespace) -> str:
    """The command line, with no path of this machine in it."""
    lengths = " ".join(map(str, options.lengths))
    return (
        f"python benchmarks/efficiency.py --out FOLDER --lengths {lengths} "
        f"--rounds {options.rounds} --llm {without_folder(options.llm)} --device {options.device} "
        f"--seed {options.seed}"
    )


def device_name(device: str) -> str:
    """The GPU's or the CPU's model name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


if __name__ == "__main__":
    main()
