"""Fuzz the settings: each value is taken and works, or is refused by an error that names its key.

``check`` reads pairs of a key and a value, as a run does before anything else. ``run`` starts a
small run (data and a random two-layer Llama of the tests) with one that was taken: none may fail
later than before training, and then by an error that names the key.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import logging
import math
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

from helpers import tiny_settings, write_dataset  # noqa: E402
from runs import run_of  # noqa: E402

from recbole_llamarec.integration.config_shims import check_values  # noqa: E402
from recbole_llamarec.integration.known import rules_of  # noqa: E402
from recbole_llamarec.keys import Rule, shown  # noqa: E402
from recbole_llamarec.recbole_keys import RULES, RUN_RULES  # noqa: E402
from recbole_llamarec.recommender import Recommender  # noqa: E402
from recbole_llamarec.settings import all_keys  # noqa: E402

NESTED = "retriever_config"
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 0.0, 1.0, 1e-300, 1e300, 1e-3),
    *(math.inf, -math.inf, math.nan, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63)),
    *(10**400, 10**5000, 1 + 2j, np.int64(3), np.float32(1), np.float64("nan")),
    *("", " ", "\0", "a\0b", "\ud800", "é", "日本", "\u200b", "\u2028", "x", "a b", "None", "nan"),
    *("inf", "-1", "1.5", "1e-3", "true", "[", "{", "}", "{}", "{x}", "{0}", "{title}", "{token}"),
    *("{token!r}", "{token:>99999999999}", "{token.x}", "{title:>99999999999}", "{title!z}"),
    *("x" * 5000, "/".join("d" * 3000), "../..", "~", ".", "a\nb", "a\tb", "1/0", "re.x", "%s"),
    *([], {}, [[]], [None], [1, [2]], [math.nan], ["x"] * 100, ["a", "a"], [True], ["\0"], [1, 2]),
    *({"a": math.nan}, {"a": {"b": [1]}}, {1: 2}, {None: 1}, {"a": None}, {"\0": 1}),
    *((), (1, 2), {1}, b"x", object, datetime.date(2024, 1, 1), [10**5000], {"x": 10**5000}),
)
WORDS = ("Red River", "user_id", "item_id", "timestamp", "title", "NDCG@10", "ndcg@5", "auto")
NUMBERS = (0, 1, 2, 3, 4, 5, 8, 10, 16, 20, 30, 64, 100, 128, 1000)
SHARES = (1e-6, 1e-4, 0.01, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0, 2.5, 10.0, 100.0)
INTERVALS = ("[2,inf)", "(0,9]", "[5,5]", "[9,2]", "[1,2];[3,inf)", "[nan,2]", "5", "[2,]")
# What a kind of type does not lead to: values that are right, or nearly so.
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "clip_grad_norm": (
        *(5, {}, {"max_norm": 1.0}, {"max_norm": 5, "norm_type": 1}, {"max_norm": "5"}),
        *({"max_norm": 1, "foreach": False}, {"norm_type": 2}, {"max_norm": 1.0, "x": 1}),
        {"max_norm": 1e-9, "norm_type": 2.0, "error_if_nonfinite": True},
    ),
    "train_neg_sample_args": (
        *("None", {"distribution": "uniform"}, {"distribution": "popularity", "alpha": 0.5}),
        *({"distribution": "normal"}, {"distribution": "uniform", "sample_num": 0}, {"alpha": 1}),
        {"distribution": "uniform", "sample_num": 2, "dynamic": True, "candidate_num": 3},
        {"distribution": "uniform", "dynamic": True},
    ),
    "eval_args": (
        *({"mode": "full"}, {"mode": "uni100"}, {"mode": {"valid": "full"}}, {"order": "RO"}),
        *({"split": {"LS": "valid_and_test"}}, {"split": {"LS": "valid_only"}}, {"mode": "fast"}),
        *({"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO"}, {"split": {"RS": [1, 2]}, "x": 1}),
        *({"split": {"RS": [0.8, 0.1, math.nan]}}, {"group_by": "item"}, {"split": None}),
        {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": "none", "mode": "full"},
        {"split": {"LS": "test_only"}, "order": "TO", "mode": "full"},
    ),
    "metrics": ("NDCG", ["ndcg"], ["Recall", "GAUC"], ["AUC"], ["NDCG", "AUC"], ["None"], [["x"]]),
    "topk": (10, [1, 10], [10, 10], [0], [1.5], [True], "10", [10, "5"]),
    "valid_metric": ("NDCG@10", "mrr@5", "NDCG", "NDCG@0", "AUC", "recall@10"),
    "learner": ("adam", "AdamW", "sgd", "ADAGRAD", "rmsprop", "sparse_adam", "lion", "adamm"),
    "load_col": ({"inter": "*"}, {"inter": ["user_id"]}, {"inter": [], "item": ["title"]}),
    "val_interval": ({"timestamp": "[0,inf)"}, {"timestamp": "[9,0)"}, {"user_id": ["1", "2"]}),
    "lora_target_modules": (["q_proj"], ["q_proj", "v_proj", "down_proj"], ["lm_head"], ["x"]),
    "verbalizer_labels": (list("ABCDEFGHIJ"), list("AB"), ["a"] * 9, list("0123456789")),
    "user_inter_num_interval": (*INTERVALS, [3, 9], [3]),
    "item_inter_num_interval": (*INTERVALS, [1, 99], (1, 9)),
    "encoding": ("utf-8", "latin-1", "utf-16", "utf8mb4", "rot13", "hex"),
    "seed": (0, 2020, 2**32 - 1, 2**32 - 2**10, 2**32),
    "gpu_id": ("", "0", "0,1", (0, 1), [0], "x"),
    "prompt_text": ("{history} | {candidates} :", "{candidates} {history}", "{history}{history}"),
    "item_text_format": ("{title}", "{title} ({year})", "{name}", "{title}{title}", "no field"),
    "retriever": ("LRURec", "SASRec", "GRU4Rec", "lrurec", "BPR", "LlamaRec", "a.b", "__init__"),
    "radius_max": (0.99, 0.9999999999, 1e-9),
}
# What would take long, or leave this machine, and is none of this campaign's business.
MOST = {
    **{"epochs": 3, "worker": 2, "MAX_ITEM_LIST_LENGTH": 100, "n_layers": 4, "seq_len": 100},
    **dict.fromkeys(("embedding_size", "state_size", "inner_size"), 256),
}


@dataclass(frozen=True)
class Pair:
    """A key and a value for it.

    Attributes:
        key: the key; of a retriever's it is the one inside.
        value: anything.
        is_nested: whether it stands in ``retriever_config``.
    """

    key: str
    value: Any
    is_nested: bool = False

    def put(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with it."""
        if not self.is_nested:
            return {**settings, self.key: self.value}
        return {**settings, NESTED: {**(settings[NESTED] or {}), self.key: self.value}}

    @property
    def is_small(self) -> bool:
        """Whether a run with it takes no longer than others."""
        values = [self.value] if not isinstance(self.value, Mapping) else self.value.values()
        most = MOST.get(self.key, math.inf)
        return all(not isinstance(v, int | float) or v <= most for v in values)


def keys() -> dict[tuple[str, bool], Rule]:
    """The rule of every key, LlamaRec's, RecBole's and those of LRURec as the retriever."""
    ours = {stated.name: stated.rule for stated in all_keys()}
    training = ("epochs", "train_batch_size", "learner", "learning_rate", "weight_decay")
    others = ("stopping_step", "eval_step", "clip_grad_norm", "shuffle", "loss_decimal_place")
    amp = ("enable_amp", "enable_scaler", "require_pow", "eval_batch_size")
    nested = {name: RULES[name] for name in (*training, *others, *amp)} | dict(rules_of("LRURec"))
    return {(name, False): rule for name, rule in (RUN_RULES | ours).items()} | {
        (name, True): rule for name, rule in nested.items()
    }


def pairs(n: int, seed: int) -> Iterator[Pair]:
    """Random keys, each with a value of its kind or any other."""
    generator = random.Random(seed)
    rules = keys()
    names = sorted(rules)
    for _ in range(n):
        name, is_nested = generator.choice(names)
        pool = NASTY if generator.random() < 0.6 else values_like(name, rules[name, is_nested])
        # RecBole fills in what a mapping lacks: each run has a copy.
        yield Pair(name, copy.deepcopy(generator.choice(pool)), is_nested)


def values_like(name: str, rule: Rule) -> Sequence[Any]:
    """Values of the kind that a rule allows."""
    pool: list[Any] = list(EXAMPLES.get(name, ()))
    words = [word.strip(" .'\"") for word in rule.allowed.replace(" or ", ",").split(",")]
    kinds = {
        "int": NUMBERS,
        "float": SHARES + NUMBERS,
        "bool": (True, False),
        "str": (*words, *WORDS, *(word.upper() for word in words)),
        "list": (words, list(WORDS[:2]), list(NUMBERS[:3]), words[:1]),
        "dict": tuple({word: number} for word in words for number in (1, 0.5, None)),
        "~": (None,),
    }
    for kind, values in kinds.items():
        if kind in rule.kind:
            pool += values
    return pool or NASTY


def check(base: Mapping[str, Any], pair: Pair) -> str:
    """What becomes of a pair when settings are read.

    Args:
        base: right settings, as RecBole has merged them.
        pair: put into them.

    Returns:
        ``accepted``, ``refused``, or what is wrong with the refusal.
    """
    try:
        check_values("LlamaRec", pair.put(base))
    except ValueError as error:
        return "refused" if pair.key in str(error) else f"no key in the error: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def base_values(folder: Path, llama: Path) -> dict[str, Any]:
    """Settings of the small run, merged with RecBole's defaults as they are before any check."""
    from recbole.config import Config

    from recbole_llamarec.integration import config_shims

    merged: dict[str, Any] = {}
    with mock.patch.object(config_shims, "check_values", lambda _, values: merged.update(values)):
        Config(config_dict=small_settings(folder, llama))
    return merged


def small_settings(folder: Path, llama: Path) -> dict[str, Any]:
    """Settings of a run of less than a second, whose data they write."""
    settings = tiny_settings(folder, llama)
    shutil.rmtree(folder / "data")
    write_dataset(folder / "data", n_users=16)
    small = {"train_max_samples": 8, "train_eval_rows": 4, "rerank_fusion": "auto"}
    retriever = {"epochs": 1, "train_batch_size": 8, "embedding_size": 8, "state_size": 8}
    return settings | small | {NESTED: retriever | {"inner_size": 8}}


def run(llama: Path, pair: Pair) -> str:
    """What becomes of a pair, taken when it was read, in the small run.

    Args:
        llama: the language model.
        pair: put into its settings.

    Returns:
        ``ran``, ``refused`` (before training, by an error that names the key), or the fault.
    """
    began: list[bool] = []
    with tempfile.TemporaryDirectory() as folder, quiet(Path(folder)), noting_training(began):
        try:
            settings = small_settings(Path(folder), llama)
            started = run_of(pair.put(settings))
            started.trainer.fit(started.train, started.valid)
            result = started.trainer.evaluate(started.test)
            if result and not all(map(math.isfinite, result.values())):
                return f"not finite: {dict(result)}"
            checkpoint = started.trainer.saved_model_file
            data = pair.put(settings)["data_path"]
            recommender = Recommender.from_checkpoint(checkpoint, data)
            recommender.recommend([recommender.tokens[1:4].tolist()], k=2)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if began:
                return f"after training began, {text}"
            return "refused" if pair.key in text else f"no key in the error, {text}"
    return "ran"


def campaign(root: Path, llama: Path, count: int, generator: random.Random) -> int:
    """Try values of keys, and one in twenty of those that are accepted in a run.

    Args:
        root: an empty folder.
        llama: the language model.
        count: values.
        generator: chooses keys and values.

    Returns:
        the findings, which are printed.
    """
    base = base_values(root / "base", llama)
    outcomes: Counter[str] = Counter()
    accepted, faults = [], []
    for pair in pairs(count, generator.randrange(2**32)):
        outcome = check(base, pair)
        outcomes[outcome] += 1
        if outcome == "accepted" and pair.is_small:
            accepted.append(pair)
        elif outcome not in ("accepted", "refused"):
            faults.append((pair, outcome))
    runs: Counter[str] = Counter()
    for pair in generator.sample(accepted, len(accepted) // 20):
        outcome = run(llama, pair)
        runs[outcome] += 1
        if outcome not in ("ran", "refused"):
            faults.append((pair, outcome))
    for pair, outcome in faults:
        print(f"{pair.key}: {shown(pair.value)}: {outcome}")
    print(
        f"{count} values: {outcomes['accepted']} accepted, {outcomes['refused']} refused; "
        f"{runs.total()} of the accepted run: {runs['ran']} to the end, {runs['refused']} refused "
        f"before training; {len(faults)} findings"
    )
    return len(faults)


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Within, a run writes into a folder and says nothing."""
    before, arguments, level = Path.cwd(), sys.argv, logging.root.manager.disable
    os.chdir(folder)
    sys.argv = ["run"]
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(level)
        os.chdir(before)
        sys.argv = arguments
        logging.root.handlers.clear()


@contextlib.contextmanager
def noting_training(began: list[bool]) -> Iterator[None]:
    """Within, the first step of training adds to a list."""
    from recbole.trainer import Trainer

    from recbole_llamarec.tuning import loop

    epoch, step = Trainer._train_epoch, loop.optimizer_step

    def noted(original):
        def call(*arguments, **options):
            began.append(True)
            return original(*arguments, **options)

        return call

    with (
        mock.patch.object(Trainer, "_train_epoch", noted(epoch)),
        mock.patch.object(loop, "optimizer_step", noted(step)),
    ):
        yield
