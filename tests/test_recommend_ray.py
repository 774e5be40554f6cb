"""Workers that rank shards: what they do with one, and a run on a Ray of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from helpers import ROOT

from recbole_llamarec.recommend import recommend_file
from recbole_llamarec.recommend_ray import ShardWorker, Workers, _require_room
from recbole_llamarec.recommender import Recommender
from recbole_llamarec.results_file import ResultsFile
from recbole_llamarec.results_folder import ResultsFolder

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs Ray: pip install ".[ray]"'
)


@pytest.fixture
def shards(tmp_path, trained):
    """Three shards of seven histories in all."""
    folder = tmp_path / "in"
    folder.mkdir()
    histories = [[f"i{n + m}" for m in range(n % 4 + 1)] for n in range(7)]
    for name, own in (("a", histories[:3]), ("b", histories[3:4]), ("c", histories[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


def expected(recommender, shards, checkpoint):
    """What one process writes for each shard."""
    results = {}
    for shard in sorted(shards.iterdir()):
        out = shards.parent / f"local-{shard.name}"
        recommend_file(recommender, shard, ResultsFile(out, checkpoint, shard, 3, 64), 3)
        results[shard.name] = out.read_bytes()
    return results


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"number": 0}, "--workers is 0; it must be 1 or more"),
        ({"cpus": 0}, "--cpus-per-worker is 0; it must be above 0"),
        ({"cpus": float("nan")}, "--cpus-per-worker is nan"),
        ({"gpus": -1}, "--gpus-per-worker is -1"),
        ({"gpus": 1.5}, "--gpus-per-worker is 1.5; it must be a whole number or below 1"),
    ],
)
def test_workers_that_there_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        Workers(**options)


def test_a_worker_ranks_a_shard_or_says_what_is_wrong(shards, trained, recommender, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    folder = ResultsFolder(shards.parent / "out", trained.checkpoint, shards, 3)
    folder.begin()
    worker = ShardWorker(folder, lambda: recommender, is_on_gpu=False)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert worker({"shard": np.array(["b.jsonl"])}) == {"shard": ["b.jsonl"], "fault": [""]}
    local = expected(recommender, shards, trained.checkpoint)
    assert folder.results("b.jsonl").read_bytes() == local["b.jsonl"]
    (shards / "a.jsonl").write_text('["nothing"]\n')
    (fault,) = worker({"shard": np.array(["a.jsonl"])})["fault"]
    assert fault.startswith("a.jsonl on ") and "no item 'nothing'" in fault


def test_a_worker_that_no_machine_has_room_for_is_refused():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    _require_room(nodes, Workers(cpus=2))
    with pytest.raises(ValueError, match="they have 2 CPUs and 0 GPUs. Reserve less"):
        _require_room(nodes, Workers(gpus=1))


KILLED = """
import os
from pathlib import Path

from recbole_llamarec import recommend, recommend_ray


class Killed(recommend_ray.ShardWorker):
    def __call__(self, batch):
        mark = Path(os.environ["MARK"])
        if batch["shard"].tolist() == ["b.jsonl"] and not mark.exists():
            mark.write_text("")
            os.kill(os.getpid(), 9)
        return super().__call__(batch)


recommend_ray.ShardWorker = Killed
main = recommend.main
"""


@needs_ray
@pytest.mark.parametrize("module", ["recbole_llamarec.recommend", "killed"])
def test_ray_gives_the_bytes_of_one_process(module, shards, trained, recommender, tmp_path):
    local = expected(recommender, shards, trained.checkpoint)
    out = tmp_path / "out"
    arguments = [f"--checkpoint={trained.checkpoint}", f"--data-path={trained.data_path}", "-k=3"]
    arguments += [f"--histories={shards}", f"--out={out}", "--engine=ray", "--workers=2"]
    environment = {**os.environ, "MARK": str(tmp_path / "mark")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment.pop("RAY_ADDRESS", None)
    (tmp_path / "killed.py").write_text(KILLED)
    script = f"import sys; from {module} import main; main(sys.argv[1:])"
    run = partial(
        subprocess.run,
        [sys.executable, "-c", script, *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    first = run()
    assert first.returncode == 0, first.stderr
    assert {name: (out / name).read_bytes() for name in local} == local
    assert (tmp_path / "mark").exists() == (module == "killed")
    if module != "killed":  # what is there is not ranked again, and what is absent is
        times = {name: (out / name).stat().st_mtime_ns for name in local}
        (out / "b.jsonl").unlink()
        assert run().returncode == 0
        assert (out / "b.jsonl").read_bytes() == local["b.jsonl"]
        assert (out / "a.jsonl").stat().st_mtime_ns == times["a.jsonl"]


def test_recommenders_are_made_where_they_are_used():
    """``load`` is sent to other processes: a class method with plain arguments."""
    import pickle

    load = partial(Recommender.from_checkpoint, "a.pth", "data")
    assert pickle.loads(pickle.dumps(load)).args == ("a.pth", "data")
