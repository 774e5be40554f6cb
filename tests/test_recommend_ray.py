"""Workers of Ray: what they do with a shard, and, where Ray is installed, a cluster of them."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from ray_stand_in import StandIn

from recbole_llamarec import recommend
from recbole_llamarec.recommend_ray import (
    ShardWorker,
    Workers,
    _require_room,
    import_ray,
    recommend_shards,
)
from recbole_llamarec.results_folder import ResultsFolder


@pytest.fixture
def folder(tmp_path) -> ResultsFolder:
    """Six shards of two histories each."""
    (tmp_path / "histories").mkdir()
    for n in range(6):
        (tmp_path / "histories" / f"{n}.jsonl").write_text(f'["i{n}"]\n["i{n}", "i{n + 1}"]\n')
    (tmp_path / "model.pth").write_bytes(b"weights")
    out, histories = tmp_path / "out", tmp_path / "histories"
    folder = ResultsFolder(out, tmp_path / "model.pth", histories, 2)
    folder.begin()
    return folder


def items_of(folder: ResultsFolder, name: str) -> list[str]:
    return [json.loads(line)[0]["item"] for line in folder.results(name).open()]


def test_a_worker_ranks_the_shard_that_it_is_given(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    loads = []
    worker = ShardWorker(folder, lambda: loads.append(1) or StandIn(), is_on_gpu=True)
    for name in ("4.jsonl", "2.jsonl"):
        result = worker({"shard": np.array([name])})
        assert result == {"shard": [name], "fault": [""]}
    assert items_of(folder, "4.jsonl") == ["i4", "i5"]
    assert folder.pending == ["0.jsonl", "1.jsonl", "3.jsonl", "5.jsonl"]
    assert len(loads) == 1  # a model a worker
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"  # what Ray gave it
    ShardWorker(folder, StandIn, is_on_gpu=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_worker_says_what_went_wrong_and_where(folder, monkeypatch):
    def load():
        raise FileNotFoundError("The data set is not at 'dataset'")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = ShardWorker(folder, load, is_on_gpu=True)({"shard": np.array(["0.jsonl"])})
    fault = f"0.jsonl on {platform.node()}: The data set is not at 'dataset'"
    assert result == {"shard": ["0.jsonl"], "fault": [fault]}
    folder.checkpoint.write_bytes(b"other")
    result = ShardWorker(folder, StandIn, is_on_gpu=True)({"shard": np.array(["0.jsonl"])})
    assert "is another file here" in result["fault"][0]
    assert len(folder.pending) == 6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"number": 0}, "--workers is 0"),
        ({"cpus": 0}, "--cpus-per-worker is 0"),
        ({"cpus": float("nan")}, "--cpus-per-worker is nan"),
        ({"gpus": -1}, "--gpus-per-worker is -1"),
        ({"gpus": 1.5}, "--gpus-per-worker is 1.5"),
    ],
)
def test_numbers_of_workers_are_checked(given, words):
    with pytest.raises(ValueError, match=words):
        Workers(**given)


def test_a_machine_must_have_what_a_worker_reserves():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    _require_room(nodes, Workers(8, cpus=2))
    _require_room(nodes, Workers(1, cpus=1, gpus=4))
    with pytest.raises(ValueError, match="have 2 CPUs and 0 GPUs, 1 CPUs and 4 GPUs. Reserve less"):
        _require_room(nodes, Workers(1, cpus=2, gpus=1))


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r'pip install "ray\[data,tune\]>=2\.60"'):
        import_ray()


# --- with Ray, whose place a stub may have taken --------------------------------------------------

needs_ray = pytest.mark.skipif(
    not hasattr(importlib.import_module("ray"), "init"), reason="needs Ray: docs/cluster.md"
)


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one CPU each, as far as Ray knows; workers find the package and the tests."""
    ray = import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(os.environ.get("OMP_NUM_THREADS", 2))}
    ray.init(cluster.address, runtime_env={"env_vars": variables}, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@needs_ray
def test_workers_rank_every_shard(cluster, folder):
    recommend_shards(folder, partial(StandIn, 0.5), Workers(2))
    for n in range(6):
        assert items_of(folder, f"{n}.jsonl") == [f"i{n}", f"i{n + 1}"]


@needs_ray
def test_a_shard_whose_worker_dies_is_ranked_again(cluster, folder, tmp_path):
    alive = tmp_path / "alive"
    recommend_shards(folder, partial(StandIn, 0, "i6", alive), Workers(2))
    assert alive.exists()  # a process was killed in shard 5
    assert folder.pending == []
    assert items_of(folder, "5.jsonl") == ["i5", "i6"]


@needs_ray
def test_a_shard_of_which_every_worker_dies_ends_the_run_and_the_next_goes_on(cluster, folder):
    with pytest.raises(ChildProcessError, match="workers failed. What is finished stays"):
        recommend_shards(folder, partial(StandIn, 0, "i6"), Workers(1))
    assert "5.jsonl" in folder.pending
    recommend_shards(folder, StandIn, Workers(1))
    assert folder.pending == []


@needs_ray
def test_what_a_worker_cannot_read_is_named(cluster, folder):
    folder.checkpoint.write_bytes(b"other")
    with pytest.raises(ChildProcessError, match="another file here.* Every machine must read"):
        recommend_shards(folder, StandIn, Workers(2))
    with pytest.raises(ValueError, match="No machine has --cpus-per-worker 2"):
        recommend_shards(folder, StandIn, Workers(2, cpus=2))


@needs_ray
@pytest.mark.slow
def test_workers_give_the_bytes_of_the_local_engine(cluster, trained, tmp_path, monkeypatch):
    histories = tmp_path / "histories"
    histories.mkdir()
    for n in range(3):
        lines = [json.dumps([f"i{m}", f"i{m + n}"]) for m in range(5)]
        (histories / f"{n}.jsonl").write_text("\n".join(lines) + "\n")
    common = [f"--checkpoint={trained.checkpoint}", f"--data-path={trained.data_path}", "-k=9"]
    options = [*common, f"--histories={histories}", f"--out={tmp_path / 'out'}", "--engine=ray"]
    recommend.main([*options, "--workers=2"])
    for n in range(3):
        own = [f"--histories={histories / f'{n}.jsonl'}", f"--out={tmp_path / f'{n}.jsonl'}"]
        recommend.main([*common, *own])
        alone = Path(tmp_path / f"{n}.jsonl").read_bytes()
        assert (tmp_path / "out" / f"{n}.jsonl").read_bytes() == alone
