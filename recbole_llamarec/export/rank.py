"""Rank candidates for a history with the language model of this folder.

    python rank.py --history "Heat (1995)" 50 --candidates "Toy Story (1995)" "Alien (1979)" 181

An item is given by its token or its title. Other texts are shown to the model as they are: clean
those that you do not trust. Each line of the output has the rank, the log-probability among the
candidates, the probability, and the title. It needs torch, transformers and, for an adapter, PEFT.

    python rank.py --check

computes the examples of ``llamarec.json`` anew, and ends with exit code 1 where a log-probability
is not that of the process that exported the folder.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.25}  # of a log-probability, by dtype


def main(folder: Path) -> None:
    """Rank what the command line gives, and print it; or check the folder."""
    parser = argparse.ArgumentParser(description="Rank candidates for a history.")
    parser.add_argument("--history", nargs="*", default=[], help="titles or tokens, oldest first")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--candidates", nargs="+", help="two or more, distinct")
    task.add_argument("--check", action="store_true", help="compare the scores of the examples")
    options = parser.parse_args()
    about, tokenizer, model = load(folder)
    if options.check:
        check(about, tokenizer, model)
        return
    try:
        scores = rank(about, tokenizer, model, options.history, options.candidates)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    ordered = sorted(zip(scores, options.candidates, strict=True), key=lambda pair: -pair[0])
    for number, (score, name) in enumerate(ordered, start=1):
        print(number, f"{score:.6f}", f"{math.exp(score):.4f}", title(about, name), sep="\t")


def load(folder: Path) -> tuple[dict, object, torch.nn.Module]:
    """Read a folder.

    Returns:
        what ``llamarec.json`` says, the tokenizer, and the model in evaluation mode.
    """
    about = json.loads((folder / "llamarec.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = about["base_model"]
    options = {"dtype": getattr(torch, about["dtype"])}
    if about["weights"] == "merged":
        return about, tokenizer, AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    from peft import PeftModel

    if base["folder"] is None:
        source, options["revision"] = base["name"], base["revision"]
    else:
        source = folder / base["folder"]
    model = AutoModelForCausalLM.from_pretrained(source, **options)
    return about, tokenizer, PeftModel.from_pretrained(model, folder).eval()


def title(about: dict, name: str) -> str:
    """The title of an item token; any other text in one line."""
    return about["items"].get(name) or " ".join(name.split())


def encode(about: dict, tokenizer, history: list[str], candidates: list[str]) -> list[int]:
    """Token ids of the prompt; the oldest items of a history that is too long are left out.

    Raises:
        ValueError: the candidates are too few, too many, repeated, or too long together.
    """
    prompt, labels = about["prompt"], about["labels"]
    if not 2 <= len(candidates) <= len(labels) or len(set(candidates)) < len(candidates):
        raise ValueError(f"Give 2 to {len(labels)} candidates, each once.")
    shown = [title(about, name) for name in history[max(0, len(history) - about["max_history"]) :]]
    pool = prompt["separator"].join(
        prompt["candidate_item"].format(label=label, title=title(about, name))
        for label, name in zip(labels, candidates, strict=False)
    )
    for first in range(len(shown) + 1):
        items = prompt["separator"].join(
            prompt["history_item"].format(number=number, title=text)
            for number, text in enumerate(shown[first:], start=1)
        )
        text = prompt["text"].format(
            instruction=prompt["instruction"],
            history=items or prompt["empty_history"],
            candidates=pool,
        )
        ids = tokenizer(text).input_ids
        if about["max_prompt_tokens"] is None or len(ids) <= about["max_prompt_tokens"]:
            return ids
    raise ValueError(f"The candidates need {len(ids)} tokens; give fewer or shorter ones.")


@torch.no_grad()
def rank(
    about: dict, tokenizer, model: torch.nn.Module, history: list[str], candidates: list[str]
) -> list[float]:
    """Log-probability of each candidate to be the next item: the log-softmax of its label's logit.

    Raises:
        ValueError: as :func:`encode`.
    """
    ids = encode(about, tokenizer, history, candidates)
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1]  # [V], behind the prompt
    labels = torch.tensor(about["label_token_ids"][: len(candidates)])
    return logits[labels].float().log_softmax(0).tolist()  # [K]


def check(about: dict, tokenizer, model: torch.nn.Module) -> None:
    """Compare the scores of the examples with those of the process that exported the folder.

    Raises:
        SystemExit: an example has other scores; says by how much.
    """
    tolerance = TOLERANCES[about["dtype"]]
    faults, largest = [], 0.0
    for number, example in enumerate(about["examples"], start=1):
        try:
            scores = rank(about, tokenizer, model, example["history"], example["candidates"])
        except ValueError as error:
            faults.append(f"Example {number} cannot be scored: {error}")
            continue
        pairs = zip(scores, example["log_probabilities"], strict=True)
        difference = max(abs(score - expected) for score, expected in pairs)
        largest = max(largest, difference)
        if not difference <= tolerance:  # nor NaN
            faults.append(
                f"Example {number} differs by up to {difference:.2g} in log-probability; in "
                f"{about['dtype']} at most {tolerance:g} is expected."
            )
    if faults:
        raise SystemExit("\n".join(faults))
    print(
        f"{len(about['examples'])} examples: the largest difference in log-probability is "
        f"{largest:.2g}; in {about['dtype']} at most {tolerance:g} is expected."
    )


if __name__ == "__main__":
    main(Path(__file__).resolve().parent)
