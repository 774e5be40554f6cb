"""``python -m recbole_llamarec.hyper``: RecBole's ``run_hyper.py`` for LlamaRec."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole.config import Config

from recbole_llamarec.hyper_tuning import (
    Tuned,
    read_space,
    tune_with_hyperopt,
    tune_with_ray,
    with_trained_retriever,
)
from recbole_llamarec.integration.known import named_file, property_files


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune as the command line says and print the best values."""
    options, settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    try:
        space = read_space(options.params_file)
        settings = with_trained_retriever(settings, space)
        if options.tool == "ray":
            tuned = tune_with_ray(
                space, settings, options.ray_dir, options.max_evals, options.concurrent
            )
        else:
            tuned = tune_with_hyperopt(
                space,
                settings,
                options.algo,
                options.max_evals,
                options.output_file,
                options.display_file,
            )
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from error
    print(summary(tuned, settings.get("retriever_checkpoint")))


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict]:
    """The command's own options, and the settings that RecBole reads from files and the rest."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.hyper",
        description="Tune LlamaRec; --key=value sets any RecBole key for all trials.",
        allow_abbrev=False,
    )
    parser.add_argument("--params_file", type=named_file, required=True, help="what to tune")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the data set")
    parser.add_argument(
        "--config_files", type=property_files, help="property files, in one argument"
    )
    parser.add_argument("--tool", choices=("hyperopt", "ray"), default="hyperopt")
    parser.add_argument("--algo", choices=("exhaustive", "random", "bayes"), help="of hyperopt")
    parser.add_argument("--max_evals", type=int, default=10, help="most trials, unless exhaustive")
    parser.add_argument("--concurrent", type=int, default=1, help="trials at a time, with Ray")
    parser.add_argument("--output_file", type=Path, help="each trial's metrics, of hyperopt")
    parser.add_argument("--display_file", type=Path, help="plot of the trials, of hyperopt")
    parser.add_argument("--ray_dir", type=Path, default=Path("saved/ray"), help="Ray's records")
    options, rest = parser.parse_known_args(arguments)
    for option, value in (("max_evals", options.max_evals), ("concurrent", options.concurrent)):
        if value < 1:
            parser.error(f"--{option} is {value}; it must be at least 1.")
    given, sys.argv = sys.argv, [sys.argv[0], *rest]
    try:
        config = Config("LlamaRec", options.dataset, config_file_list=options.config_files)
    finally:
        sys.argv = given
    named = {"model": "LlamaRec", "dataset": options.dataset}
    return options, {**config.external_config_dict, **named}


def summary(tuned: Tuned, retriever_checkpoint: str | None) -> str:
    """The best trial for people."""
    values = " ".join(f'--{key}="{value}"' for key, value in tuned.params.items())
    lines = [f"Best of {tuned.n_trials} trials by validation: {values}"]
    for name, metrics in (("valid", tuned.valid), ("test", tuned.test)):
        listed = "  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
        lines.append(f"{name}: {listed}")
    if retriever_checkpoint:
        lines.append(f"All trials had the retriever --retriever_checkpoint={retriever_checkpoint}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
