"""Hyper-parameter tuning of LlamaRec, by RecBole's HyperTuning (hyperopt) or by Ray Tune.

Trials that differ in the ranker's settings alone start from one retriever, which is trained once.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.quick_start import objective_function

from recbole_llamarec.fitting import fitted
from recbole_llamarec.integration.configs import training_arguments
from recbole_llamarec.integration.known import FILE_RETRIEVER
from recbole_llamarec.integration.values import no_command_line
from recbole_llamarec.ranking.protocol import NO_RANKER
from recbole_llamarec.settings import llamarec_keys

Space = Mapping[str, tuple[str, list]]
N_VALUES = {"choice": None, "uniform": 2, "quniform": 3, "loguniform": 2}
# Keys of LlamaRec that change the data, or the retriever and how its best epoch is chosen.
OF_RETRIEVER = {
    *("exact_chronology", "item_text_format", "item_text_missing", "rerank_mask_seen"),
    *("retriever", "retriever_config", "retriever_checkpoint", "retriever_file"),
}
OF_RANKER = {*llamarec_keys(), *training_arguments} - OF_RETRIEVER
# With these, a run trains the retriever alone, whatever the trials do with it.
NO_SCORERS = {"ranking_method": NO_RANKER, "evidence_items": 0, "scorers": None}


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Attributes:
        params: the best values.
        valid: validation metrics of that trial, RecBole's ``best_valid_result``.
        test: its test metrics.
        n_trials: trials that were run.
    """

    params: Mapping[str, Any]
    valid: Mapping[str, float]
    test: Mapping[str, float]
    n_trials: int


def read_space(file: Path) -> Space:
    """Read what is to be tuned from a file in RecBole's format: ``key kind values`` in each line.

    Kinds: ``choice [..]``; ``uniform low,high``; ``quniform low,high,step``; ``loguniform
    low,high``, of the logarithm: -10,-2 draws from exp(-10) to exp(-2). Lines that begin with ``#``
    are left out.

    Returns:
        kind and values of each key.

    Raises:
        FileNotFoundError, ValueError: no such file; a line is in no such form, or its key is there
            already; names it.
    """
    if not file.is_file():
        raise FileNotFoundError(f"--params_file: there is no file {str(file)!r}.")
    space: dict[str, tuple[str, list]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        key, kind, text = [*line.split(maxsplit=2), "", ""][:3]
        try:
            literal = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            literal = None
        values = list(literal) if isinstance(literal, list | tuple) else []  # not a text's letters
        if kind not in N_VALUES or not values or len(values) != (N_VALUES[kind] or len(values)):
            raise ValueError(
                f"{file}, line {number}: {line!r} must be a key, a kind and its values, such as "
                "'lora_r choice [4,8]', 'lora_dropout uniform 0,0.2', 'lora_alpha quniform 8,64,8' "
                "or 'learning_rate loguniform -12,-6'."
            )
        if key in space:
            raise ValueError(f"{file}, line {number}: {key} is there already; keep one of the two.")
        space[key] = (kind, values)
    if not space:
        raise ValueError(f"--params_file: {str(file)!r} names nothing to tune.")
    return space


def shares_retriever(keys: Iterable[str]) -> bool:
    """Whether trials that differ in ``keys`` can have one retriever."""
    return OF_RANKER.issuperset(keys)


def with_trained_retriever(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Settings of all trials: where they can share the retriever, with one that is trained now.

    Args:
        settings: of LlamaRec's run, with ``model`` and ``dataset``.
        keys: what is tuned.

    Returns:
        the settings, with ``retriever_checkpoint`` set. They are unchanged where a checkpoint is
        given already, or the retriever is a file, or something is tuned that it depends on.
    """
    if settings.get("retriever_checkpoint") or settings.get("retriever") == FILE_RETRIEVER:
        return dict(settings)
    if own := sorted(set(keys) - OF_RANKER):
        getLogger().warning(
            f"The retriever depends on {', '.join(own)}: every trial trains its own."
        )
        return dict(settings)
    with no_command_line():
        config = Config(config_dict={**settings, **NO_SCORERS})
    file = Path(fitted(config).saved_model_file).with_suffix(f".{config['retriever']}.pth")
    return {**settings, "retriever_checkpoint": str(file.resolve())}


def trial(params: Mapping[str, Any], config_file_list=None, *, settings: Mapping[str, Any]) -> dict:
    """One trial, as RecBole's ``objective_function`` runs it.

    It tunes an adapter of its own, unless ``lora_adapter`` is given: one that is found fits some
    trials alone, and makes those of training keys equal.

    Args:
        params: values of what is tuned.
        config_file_list: property files, as HyperTuning hands them on.
        settings: of all trials.

    Returns:
        what ``objective_function`` returns: ``best_valid_score``, ``test_result`` and others.
    """
    with no_command_line():
        return objective_function({"lora_adapter": None, **settings, **params}, config_file_list)


def tune_with_hyperopt(
    space: Space,
    settings: Mapping[str, Any],
    algo: str | None = None,
    max_evals: int = 10,
    output_file: Path | None = None,
    display_file: Path | None = None,
) -> Tuned:
    """Tune by RecBole's HyperTuning, one trial after another.

    Args:
        space: from :func:`read_space`.
        settings: of all trials.
        algo: ``exhaustive`` (every combination of choices), ``random`` or ``bayes``; if left out,
            exhaustive where all are choices, else bayes.
        max_evals: most trials, of random and bayes.
        output_file: gets each trial's metrics.
        display_file: gets a plot of the trials' scores, HTML.

    Raises:
        ImportError: hyperopt is not installed.
    """
    from recbole.trainer.hyper_tuning import HyperTuning, exhaustive_search

    by_kind: dict[str, dict[str, list]] = {}
    for key, (kind, values) in space.items():
        by_kind.setdefault(kind, {})[key] = values
    search: Any = algo or ("exhaustive" if _is_grid(space) else "bayes")
    if search == "exhaustive":
        max_evals = math.prod(len(values) for kind, values in space.values() if kind == "choice")
        # It draws until a combination is new; with fewer draws it may miss some.
        search = partial(exhaustive_search, nbMaxSucessiveFailures=100 * max_evals)
    try:
        tuning = HyperTuning(
            partial(trial, settings=settings),
            params_dict=by_kind,
            algo=search,
            max_evals=max_evals,
            early_stop=max_evals,
            display_file=str(display_file) if display_file else None,
        )
    except ModuleNotFoundError as error:
        raise ImportError("Tuning needs hyperopt: pip install hyperopt") from error
    tuning.run()
    if output_file is not None:
        tuning.export_result(output_file=str(output_file))
    best = tuning.params2result[tuning.params2str(tuning.best_params)]
    return Tuned(
        tuning.best_params,
        best["best_valid_result"],
        best["test_result"],
        len(tuning.params2result),
    )


def tune_with_ray(
    space: Space,
    settings: Mapping[str, Any],
    directory: Path,
    max_evals: int = 10,
    concurrent: int = 1,
) -> Tuned:
    """Tune by Ray Tune: random draws, or every combination of choices, some of them at a time.

    Args:
        space: from :func:`read_space`.
        settings: of all trials.
        directory: gets Ray's records and each trial's checkpoints.
        max_evals: most trials; a space of choices alone is searched exhaustively.
        concurrent: trials at the same time; they share processors and GPUs equally.

    Raises:
        ImportError: Ray Tune is not installed.
    """
    try:
        import ray
        from ray import tune

        params = _params_for_ray(space, tune)
    except (ImportError, AttributeError) as error:  # the stub of integration can only report
        raise ImportError("Tuning with Ray needs Ray Tune: pip install 'ray[tune]'") from error

    directory = directory.resolve()

    def run(values: dict) -> dict:
        own = str(directory / tune.get_context().get_trial_id())  # names have one second only
        return trial(values, settings={**settings, "checkpoint_dir": own})

    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # settings may hold relative paths
    ray.init(ignore_reinit_error=True, include_dashboard=False)
    tuner = tune.Tuner(
        tune.with_resources(run, share_of_machine(concurrent)),
        param_space=params,
        tune_config=tune.TuneConfig(
            num_samples=1 if _is_grid(space) else max_evals, max_concurrent_trials=concurrent
        ),
        run_config=tune.RunConfig(name="ray", storage_path=str(directory)),
    )
    results = tuner.fit()
    ray.shutdown()
    if results.errors:
        raise results.errors[0]
    with no_command_line():
        bigger = Config(config_dict=dict(settings))["valid_metric_bigger"]
    best = results.get_best_result("best_valid_score", "max" if bigger else "min")
    found = best.metrics
    return Tuned(best.config, found["best_valid_result"], found["test_result"], len(results))


def share_of_machine(concurrent: int) -> dict[str, float]:
    """The processors and GPUs of each of some trials at the same time, in Ray's terms.

    Ray gives a trial whole GPUs, or a part of one.
    """
    share: dict[str, float] = {"CPU": (os.cpu_count() or 1) // concurrent or 1}
    if n_gpus := torch.cuda.device_count():
        share["GPU"] = n_gpus // concurrent or 1 / math.ceil(concurrent / n_gpus)
    return share


def _is_grid(space: Space) -> bool:
    return all(kind == "choice" for kind, _ in space.values())


def _params_for_ray(space: Space, tune) -> dict[str, Any]:
    """The space in the terms of ``ray.tune``."""
    if _is_grid(space):
        return {key: tune.grid_search(values) for key, (_, values) in space.items()}
    draws = {
        "choice": tune.choice,
        "uniform": lambda values: tune.uniform(*values),
        "quniform": lambda values: tune.quniform(*values),
        "loguniform": lambda values: tune.loguniform(*map(math.exp, values)),
    }
    return {key: draws[kind](values) for key, (kind, values) in space.items()}
