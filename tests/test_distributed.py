"""Several processes, on one machine and on several: every row is read once, weights are equal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import ROOT, checkpoint_of, environment, free_port
from recbole.config import Config
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_llamarec import distributed
from recbole_llamarec.evaluation.passes import PassRecords
from recbole_llamarec.tuning.loop import step_seed

# By what RecBole calls them: two processes of one machine, and one process on each of two.
PLACES = {
    "one machine": [
        {"local_rank": 0, "offset": 0, "nproc": 2},
        {"local_rank": 1, "offset": 0, "nproc": 2},
    ],
    "two machines": [
        {"local_rank": 0, "offset": 0, "nproc": 1},
        {"local_rank": 0, "offset": 1, "nproc": 1},
    ],
}


class Loaded(NamedTuple):
    """What RecBole's ``load_data_and_model`` gives."""

    config: Any
    model: Any
    dataset: Any
    train: Any
    valid: Any
    test: Any


def loaded(file: Path, data_path: str) -> Loaded:
    """A checkpoint in this process alone."""
    from recbole.quick_start import load_data_and_model  # which workers cannot import yet

    return Loaded(*load_data_and_model(str(file), data_path))


def metrics_in_one_process(config, model, dataset, train, valid, test) -> dict:
    """The test's metrics, all rows in one process."""
    from recbole.utils import get_trainer

    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(train)
    return dict(trainer.evaluate(test, load_best_model=False))


def spawned(function, folder: Path, *arguments) -> list[dict]:
    """What each of two processes has saved as ``<rank>.pt``."""
    torch.multiprocessing.spawn(function, args=(free_port(), folder, *arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


# --- single calls --------------------------------------------------------------------------------


def calls(rank: int, port: int, folder: Path) -> None:
    """Every function, in one of two processes."""
    address = f"tcp://localhost:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    gradients = [torch.full((2, 3), float(rank)), torch.tensor([10.0 * rank])]
    distributed.average_gradients(gradients)
    distributed.average_gradients([])
    # Five rows in two equal shares, as RecBole deals them: the sixth is the first again.
    rows = {"users": np.array([[1, 3, 5], [2, 4, 1]][rank])}
    is_ranked = np.array([[True, False, True], [True, True, True]][rank])
    ranked = {"items": np.array([[[10], [50]], [[20], [40], [10]]][rank])}
    records = PassRecords(rows | {"is_ranked": is_ranked}, ranked)
    evaluated = SimpleNamespace(eval_collector=SimpleNamespace(n_rows=5))
    torch.save(
        {
            "rank": (distributed.rank(), distributed.world_size(), distributed.is_first()),
            "shares": [distributed.share_of(np.arange(n)).tolist() for n in (0, 1, 2, 5)],
            "gathered": distributed.gathered({"rank": rank}),
            "first": distributed.from_first(f"of {rank}"),
            "gradients": gradients,
            "records": records.of_all_processes(5),
            "metrics": Trainer._map_reduce(evaluated, {"averagepopularity@5": 12345.6789}, 3),
        },
        folder / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_gather_and_average(tmp_path):
    one, other = spawned(calls, tmp_path)
    assert (one["rank"], other["rank"]) == ((0, 2, True), (1, 2, False))
    assert one["shares"] == [[], [0], [0], [0, 2, 4]]
    assert other["shares"] == [[], [0], [1], [1, 3]]  # one row alone goes to both
    for own in (one, other):
        assert own["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert own["first"] == "of 0"
        assert own["gradients"][0].tolist() == [[0.5] * 3] * 2
        assert own["gradients"][1].tolist() == [5.0]
        assert own["metrics"] == {"averagepopularity@5": 12345.6789}  # float32 has 12345.679
        records = own["records"]
        assert sorted(records.rows["users"].tolist()) == [1, 2, 3, 4, 5]  # none twice
        ranked = records.rows["users"][records.rows["is_ranked"]]
        assert records.ranked["items"].flatten().tolist() == (10 * ranked).tolist()


def test_a_single_process_shares_with_nobody():
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.is_first() and distributed.barrier() is None
    assert distributed.share_of(np.arange(3)).tolist() == [0, 1, 2]
    assert distributed.gathered("a") == ["a"] and distributed.from_first("a") == "a"
    gradient = torch.ones(2)
    distributed.average_gradients([gradient])
    assert gradient.tolist() == [1, 1]


def left_alone(rank: int, port: int, folder: Path) -> None:
    """The second of two processes is killed, and the first one waits for it."""
    address = f"tcp://localhost:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    distributed.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        with distributed.naming_lost_process():
            distributed.average_gradients([torch.ones(2)])
    except RuntimeError as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)  # torch's threads abort a process now and then that ends without its group


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so(tmp_path):
    context, port = torch.multiprocessing.get_context("spawn"), free_port()
    processes = [
        context.Process(target=left_alone, args=(rank, port, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    text = (tmp_path / "error.txt").read_text()
    assert text.startswith("ProcessLostError: Process 0 of 2 has lost the connection to another")
    assert "(rank 1)" in text and "Start the same command again" in text


def test_a_port_that_another_run_has_is_named(tiny_run):
    """As where a second run is started on a machine, with RecBole's default port."""
    place = PLACES["one machine"][0] | {"world_size": 2, "ip": "localhost"}
    with socket.socket() as other_run:
        other_run.bind(("", 0))
        other_run.listen()
        port = other_run.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"--port={port}: another run .* --port=5679"):
            Config(config_dict=tiny_run | place | {"port": port})


def test_other_errors_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    with pytest.raises(RuntimeError, match="^own fault$"), distributed.naming_lost_process():
        raise RuntimeError("own fault")
    with (
        pytest.raises(RuntimeError, match="^Connection closed by peer$"),  # of a server, say
        distributed.naming_lost_process(),
    ):
        raise RuntimeError("Connection closed by peer")


# --- whole runs ----------------------------------------------------------------------------------


def run_in_process(rank: int, port: int, folder: Path, settings: dict, places: list[dict]) -> None:
    """A run as RecBole's workers do it, with a record of what it draws."""
    from runs import run_of

    from recbole_llamarec.tuning import loop as loop_module
    from recbole_llamarec.tuning.samples import TuningSamples

    sys.argv = ["test"]
    os.chdir(folder)
    place = places[rank] | {"world_size": 2, "ip": "localhost", "port": port}
    drawn, seeds, draw = [], [], TuningSamples.draw

    def recorded_draw(self, rows, *rest):
        drawn.append(rows.tolist())
        return draw(self, rows, *rest)

    def recorded_seed(seed, step, process):
        seeds.append((step, process))
        return step_seed(seed, step, process)

    TuningSamples.draw, loop_module.step_seed = recorded_draw, recorded_seed
    init_seed(2020 + place["local_rank"], True)
    trainer, train, valid, test = run_of(settings, **place)
    batches = TuningSamples(trainer.model, train.dataset, 2020).batches(1, 8)
    score, result = trainer.fit(train, valid)
    final = trainer.evaluate(test)
    torch.save(
        {
            "drawn": drawn,
            "seeds": seeds,
            "batches": [batch.tolist() for batch in batches],
            "state_dict": trainer.model.state_dict(),
            "other": trainer.model.other_parameter(),
            "best": (float(score), dict(result)),
            "final": dict(final),
            "users": trainer.report.users,
            "stages": [stage.name for stage in trainer.report.stages],
            "n_validation": valid.dataset.inter_num,
            "validation": trainer.journal.validation,
        },
        folder / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("machines", list(PLACES))
def test_shares_and_seeds_go_by_the_global_rank(tiny_run, workdir, machines):
    """Of two machines, each process has local rank 0, and yet half of the rows each."""
    others = ["ItemCoverage", "GiniIndex", "ShannonEntropy", "TailPercentage", "AveragePopularity"]
    metrics = [*tiny_run["metrics"], "GAUC", *others]
    settings = tiny_run | {"rerank_fusion": "auto", "evidence_items": 2, "metrics": metrics}
    one, other = spawned(run_in_process, workdir, settings, PLACES[machines])
    assert one["batches"] == other["batches"]
    for batch, first, second in zip(one["batches"], one["drawn"], other["drawn"], strict=True):
        assert sorted(first + second) == sorted(batch)
        assert not set(first) & set(second)
    assert one["seeds"] == [(1, 0), (2, 0)] and other["seeds"] == [(1, 1), (2, 1)]

    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name]), name
    adapters = [own["other"]["scorers"]["verbalizer"]["adapter"] for own in (one, other)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    assert one["other"]["fusion"] == other["other"]["fusion"]
    assert one["best"] == other["best"] and one["final"] == other["final"]
    assert one["stages"] == other["stages"] and one["validation"] == other["validation"]

    pd.testing.assert_frame_equal(one["users"], other["users"])
    assert len(one["users"]) == one["users"]["user_id"].nunique() == 39  # none twice, none left out
    saved = Path(settings["checkpoint_dir"])
    assert {file.name.split(".", 1)[1] for file in saved.iterdir()} == {
        *("pth", "adapter", "LRURec.pth", "users.csv"),
    }
    run = loaded(checkpoint_of(saved), settings["data_path"])  # usable in one process
    assert metrics_in_one_process(*run) == pytest.approx(one["final"], abs=1e-4)
    restored = run.model.other_parameter()["scorers"]["verbalizer"]["adapter"]
    assert all(torch.equal(restored[name], adapters[0][name]) for name in restored)


@pytest.mark.slow
def test_without_dropout_two_processes_train_and_test_like_one(tiny_run, workdir):
    """39 windows and 36 training rows, so that shares of the last batches are not equal."""
    from runs import run_of

    retriever = {"epochs": 3, "train_batch_size": 16, "stopping_step": 9, "learning_rate": 1e-2}
    retriever |= {"dropout_prob": 0.0, "embedding_dropout_prob": 0.0}
    settings = tiny_run | {
        "retriever_config": retriever,
        "lora_dropout": 0.0,
        "train_max_samples": 13,
        "rerank_fusion": "auto",
        "evidence_items": 2,
    }
    one, other = spawned(run_in_process, workdir, settings, PLACES["two machines"])
    init_seed(2020, True)
    trainer, train, valid, test = run_of(settings, checkpoint_dir="alone")
    score, result = trainer.fit(train, valid)
    final = trainer.evaluate(test)
    own = trainer.model.state_dict()
    assert one["state_dict"].keys() == own.keys()
    for name, weight in own.items():
        torch.testing.assert_close(one["state_dict"][name], weight, atol=1e-4, rtol=1e-4)
    adapter = trainer.model.other_parameter()["scorers"]["verbalizer"]["adapter"]
    for name, weight in one["other"]["scorers"]["verbalizer"]["adapter"].items():
        torch.testing.assert_close(weight, adapter[name], atol=1e-4, rtol=1e-3)
    assert one["final"] == pytest.approx(dict(final), abs=1e-4)
    assert one["best"][1] == pytest.approx(dict(result), abs=1e-4)
    users = trainer.report.users["user_id"]
    assert sorted(one["users"]["user_id"]) == sorted(users)


def commands(start: list[str], port: int, machines: str) -> list[list[str]]:
    """What is typed on each machine."""
    common = [
        *(sys.executable, *start, "--model=LlamaRec", "--dataset=tiny", "--config_files=run.yaml"),
        *(f"--port={port}", "--epochs=1"),
    ]
    if machines == "one machine":
        return [[*common, "--nproc=2"]]
    return [[*common, "--nproc=1", "--world_size=2", f"--group_offset={k}"] for k in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "machines"),
    [("run_recbole.py", "one machine"), ("-m", "two machines")],
)
def test_the_command_runs_in_two_processes(tiny_run, script, machines):
    """Started as a script and as a module, whose workers import different main modules."""
    keys = {key: value for key, value in tiny_run.items() if key != "model"}
    Path("run.yaml").write_text(yaml.safe_dump(keys))
    start = [str(ROOT / script)] if script.endswith(".py") else ["-m", "recbole_llamarec"]
    started = [
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(OMP_NUM_THREADS="1"),
        )
        for command in commands(start, free_port(), machines)
    ]
    logs = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * len(started), logs[0][-3000:]
    assert "test result" in logs[0] and "| final: verbalizer " in logs[0]
    checkpoint = checkpoint_of(Path(tiny_run["checkpoint_dir"]))
    assert len(pd.read_csv(checkpoint.with_suffix(".users.csv"))) == 39
    assert loaded(checkpoint, tiny_run["data_path"]).model.fusion.takes_part("verbalizer")
