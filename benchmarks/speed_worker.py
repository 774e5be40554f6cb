"""Parts of speed.py that need a process of their own: for its peak memory, or for its start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
RESULT = "RESULT "


def in_a_process(part: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run ``part`` in a new process; return what it reports, with its peak memory."""
    command = [sys.executable, __file__, part, json.dumps(task)]
    process = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in process.stdout.splitlines() if line.startswith(RESULT)]
    if process.returncode or not lines:
        raise RuntimeError(f"{part} {task} failed:\n{process.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix(RESULT))


def tuning(task: dict[str, Any]) -> dict[str, Any]:
    """A step of tuning on one batch."""
    import torch
    from speed_methods import MOST_HISTORY, N_HISTORY, Bench, matrix_rate
    from speed_tuning import Tuning

    bench = Bench.of(task["dataset"], task["data"], task["llm"])
    tuned = Tuning(bench, task["method"])
    n_history = MOST_HISTORY if tuned.is_titles else N_HISTORY
    n_first = 1 if tuned.is_reference else task["prompts"]
    tuned.step(*bench.sample(n_first, -1, n_history))  # compiles what shapes need
    rows = bench.sample(task["prompts"], task["seed"], n_history)
    tuned.elsewhere, start = 0.0, time.perf_counter()
    loss = tuned.step(*rows)
    seconds = time.perf_counter() - start
    lengths = tuned.lengths(*rows)
    return {
        "seconds": seconds / len(lengths),
        "loss": loss,
        "tokens": sum(lengths) / len(lengths),
        "elsewhere": tuned.elsewhere / seconds,
        "flops": tuned.flops(lengths) / len(lengths),
        "matrix_rate": matrix_rate(getattr(torch, tuned.dtype), 256 if task["quick"] else 2048),
    }


def evaluation(task: dict[str, Any]) -> dict[str, Any]:
    """A test set as users evaluate it, and how much of the time the language model takes."""
    import numpy as np
    import torch
    from speed_methods import MODELS, N_HISTORY, K, read

    from recbole_llamarec.integration.configs import loader_like
    from recbole_llamarec.llamarec import LlamaRec
    from recbole_llamarec.retrieval.retriever import load_retriever, train_retriever
    from recbole_llamarec.scoring.fusion import Fusion
    from recbole_llamarec.trainer import LlamaRecTrainer

    settings = {f"llm_{key}": value for key, value in MODELS[task["method"]].items()}
    settings |= {"ranking_method": "verbalizer", "prompt_max_history": N_HISTORY}
    settings |= {"llm_name_or_path": task["llm"], "rerank_fusion": None, "rerank_candidates": K}
    if task["quick"]:
        settings["retriever_config"] = {"epochs": 1}
    config, train, valid, test = read(
        task["dataset"], task["data"], epochs=0, seed=2020, **settings
    )
    model = LlamaRec(config, train.dataset)
    trainer = LlamaRecTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    name = f"speed-{task['dataset']}{'-quick' if task['quick'] else ''}.pth"
    file = Path("saved") / name
    if file.is_file():
        load_retriever(model.retriever, config["retriever"], file)
    else:
        file.parent.mkdir(exist_ok=True)
        train_retriever(
            *(model.retriever_config, model.retriever, train, valid, file),
            keep_file=True,
            show_progress=False,
            log_directory=trainer.tensorboard.log_dir,
            seen=model.seen,
        )
    rows = np.sort(np.random.default_rng(0).permutation(len(test.dataset))[: task["rows"]])
    subset = test.dataset.copy(test.dataset.inter_feat[torch.from_numpy(rows)])
    loader = loader_like(test, config, subset)
    model.fusion = Fusion.from_setting(None, model.scorer_names)  # the ranker decides alone
    ranker, in_model, n_ranked = trainer.language_model.ranker, 0.0, 0
    plain = ranker.scores

    def timed(batch: list):
        nonlocal in_model, n_ranked
        begin = time.perf_counter()
        result = plain(batch)
        in_model += time.perf_counter() - begin
        n_ranked += len(batch)
        return result

    ranker.scores = timed
    start = time.perf_counter()
    trainer.evaluate(loader, load_best_model=False)
    elapsed = time.perf_counter() - start
    return {
        "seconds": elapsed,
        "in_model": in_model,
        "rows": len(rows),
        "ranked": n_ranked,
        "metrics": dict(trainer.report.final.metrics),
        "retriever": dict(trainer.report.retriever.metrics),
    }


def start(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the start of Python until the first prompt of a run is scored."""
    from speed_methods import Bench, ours  # imports what a run imports

    bench = Bench.of(task["dataset"], task["data"], task["llm"])
    ours(bench.ranker("bfloat16"))(*bench.sample(1, 0))
    return {"seconds": time.perf_counter() - STARTED}


def retrieval(task: dict[str, Any]) -> dict[str, Any]:
    """20 candidates for every user of a data set, by an LRURec of its size."""
    from speed_methods import K, read

    from recbole_llamarec.llamarec import LlamaRec
    from recbole_llamarec.retrieval.candidates import top_candidates

    config, train, _, test = read(task["dataset"], task["data"], ranking_method="none")
    model = LlamaRec(config, train.dataset)
    rows = test.dataset.inter_feat
    begin = time.perf_counter()
    candidates = top_candidates(model.retriever, rows, K, model.seen)
    return {
        "seconds": time.perf_counter() - begin,
        "users": len(candidates),
        "items": model.n_items - 1,
    }


def large_catalogue(task: dict[str, Any]) -> dict[str, Any]:
    """20 candidates for users over made-up items."""
    import torch
    import yaml
    from recbole.data.interaction import Interaction
    from speed_methods import K

    from recbole_llamarec.retrieval.candidates import top_candidates
    from recbole_llamarec.retrieval.lrurec import LRURec

    n_items = task["items"] + 1
    properties = Path(__file__).parents[1] / "properties" / "model" / "LRURec.yaml"
    config = yaml.safe_load(properties.read_text()) | {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": 50,
        "device": torch.device("cpu"),
    }

    class Catalogue:
        def num(self, _field: str) -> int:
            return n_items

    model = LRURec(config, Catalogue())
    generator = torch.Generator().manual_seed(0)
    histories = torch.randint(1, n_items, (task["users"], 50), generator=generator)
    users = torch.arange(task["users"])
    lengths = torch.full((task["users"],), 50)
    rows = Interaction({"user_id": users, "item_id_list": histories, "item_length": lengths})
    begin = time.perf_counter()
    top_candidates(model, rows, K)
    return {"seconds": time.perf_counter() - begin, "users": task["users"], "items": n_items - 1}


def peak_memory() -> float:
    """This program's greatest resident memory in MB.

    ``getrusage`` would count the program that started it, too, where that was the larger one.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def run_part(part: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run the part of that name in this process; what it reports, with the peak memory."""
    parts = (tuning, evaluation, start, retrieval, large_catalogue)
    report = {function.__name__: function for function in parts}[part](task)
    return {**report, "peak_mb": peak_memory()}


def main() -> None:
    """Run the part that the command line names and print what it reports."""
    part, task = sys.argv[1], json.loads(sys.argv[2])
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed
    print(RESULT + json.dumps(run_part(part, task)))


if __name__ == "__main__":
    main()
