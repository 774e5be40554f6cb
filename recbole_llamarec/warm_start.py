"""``python -m recbole_llamarec.warm_start``: an adapter that knows what the labels stand for.

It is tuned on item titles alone, without any interaction (see ``ranking/binding.py``), and saved as
a PEFT directory that ``lora_adapter`` starts from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset

from recbole_llamarec.llamarec import build_ranker
from recbole_llamarec.ranking.adapter import add_adapter, save_adapter
from recbole_llamarec.ranking.binding import bind_labels
from recbole_llamarec.ranking.ranker import Ranker
from recbole_llamarec.settings import LlamaRecSettings

LOG_STEPS = 10
SAVE_STEPS = 50
_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune the adapter, save it, and write what it was made of beside it."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    titles = [""]
    for dataset in options.datasets:
        config = Config(
            model="LlamaRec",
            dataset=dataset,
            config_file_list=options.config_files,
            config_dict={"ranking_method": "verbalizer"},  # which labels are for
        )
        settings = LlamaRecSettings.from_config(config)
        titles += create_dataset(config).item_texts(settings.item_text_fallback)[1:]
    record = warm_start(
        settings, titles, options.steps, options.seed, options.out, config["device"]
    )
    record = {"datasets": options.datasets, **record}
    text = json.dumps(record, indent=1) + "\n"
    (options.out / "warm_start.json").write_text(text)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options; RecBole reads ``--key=value`` by itself."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.warm_start",
        description="Tune an adapter on titles, so that its labels stand for the candidates; "
        "--key=value sets any RecBole key.",
    )
    parser.add_argument("--datasets", nargs="+", required=True, help="whose titles are read")
    parser.add_argument("--config_files", nargs="*", help="property files")
    parser.add_argument("--out", type=Path, required=True, help="directory of the adapter")
    parser.add_argument("--steps", type=int, default=600, help="most optimizer steps")
    parser.add_argument("--seed", type=int, default=2020)
    return parser.parse_known_args(arguments)[0]


def warm_start(
    settings: LlamaRecSettings,
    titles: Sequence[str],
    n_steps: int,
    seed: int,
    directory: Path,
    device: torch.device,
) -> dict:
    """Tune an adapter on titles and save it.

    Args:
        settings: of the language model, the prompt, the labels and the adapter, with
            ``ranking_method: verbalizer``.
        titles: item texts; the first is the padding item's.
        n_steps: most optimizer steps.
        seed: of the adapter and of the prompts.
        directory: where the adapter goes, in PEFT's format.

    Returns:
        what it was made of: settings, steps, seconds, the loss of every step, a digest of titles.
    """
    ranker = build_ranker(
        settings, titles, device, lambda base: add_adapter(base, settings.lora, seed)
    )
    assert isinstance(ranker, Ranker)
    start, curve = time.perf_counter(), []
    for step, n_candidates, loss in bind_labels(ranker, n_steps, np.random.default_rng(seed)):
        curve.append([n_candidates, round(loss, 4)])
        if step % LOG_STEPS == 0:
            mean = np.mean([loss for _, loss in curve[-LOG_STEPS:]])
            seconds = time.perf_counter() - start
            _logger.info(
                "step %d: %d candidates, loss %.3f nats, %.0f s", step, n_candidates, mean, seconds
            )
        if step % SAVE_STEPS == 0:
            save_adapter(ranker.model, directory)
    save_adapter(ranker.model, directory)
    return {
        "language_model": settings.llm.name_or_path,
        "lora": asdict(settings.lora),
        "seed": seed,
        "steps": len(curve),
        "seconds": round(time.perf_counter() - start),
        "titles": len(titles) - 1,
        "titles_sha256": hashlib.sha256("\n".join(titles).encode()).hexdigest(),
        "candidates_and_loss": curve,
    }


if __name__ == "__main__":
    main()
