"""The README's commands and Python blocks run, on a small data set with a small language model.

A command that is new in the README fails here until it is in ``RUNS`` or ``ELSEWHERE``.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from helpers import ROOT, tiny_settings
from recbole.config import Config

from recbole_llamarec.integration.configs import known_keys
from recbole_llamarec.settings import llamarec_keys

README = (ROOT / "README.md").read_text()


def commands(text: str) -> list[str]:
    """Each line of the bash blocks, and the code within lines that calls python or pip."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [
        code for code in re.findall(r"`([^`]+)`", prose) if re.search(r"\b(python|pip) ", code)
    ]
    return [" ".join(command.split()) for command in (*lines, *spans)]


@dataclass(frozen=True)
class Run:
    """How a command is run in small.

    Attributes:
        changes: texts of the command and what stands for them; each must be found.
        leaves: a file that it writes.
        prints: a text that it prints or logs.
    """

    changes: dict[str, str]
    leaves: str = ""
    prints: str = ""


TINY = "--dataset=tiny --config_files=run.yaml"
RECOMMEND = "python -m recbole_llamarec.recommend --checkpoint saved/LlamaRec-….pth"
CONVERT = "python -m recbole_llamarec.convert"
RUNS = {
    "python run_recbole.py --model=LlamaRec --dataset=ml-100k "
    "--config_files=properties/llama-2-7b-qlora.yaml": Run(
        {
            "--dataset=ml-100k": "--dataset=tiny --llm_load_in_4bit=False",
            "properties/llama-2-7b-qlora.yaml": '"properties/llama-2-7b-qlora.yaml run.yaml"',
        },
        prints="LlamaRec, retrieved",
    ),
    "python -m recbole_llamarec --model=LlamaRec …": Run({"…": TINY}, prints="LlamaRec, retrieved"),
    "python -m recbole_llamarec.hyper --params_file=properties/hyper/llamarec.test "
    "--dataset=ml-100k": Run({"--dataset=ml-100k": TINY}, prints="Best of 8 trials"),
    f'{RECOMMEND} --history "Toy Story" "Heat (1995)" "Pulp Fiction" -k 3': Run(
        {'"Toy Story" "Heat (1995)" "Pulp Fiction"': '"The Star Old 59" i7'}, prints="| 3 "
    ),
    f"{RECOMMEND} --history 1 50 --candidates 172 181": Run(
        {"1 50": "i1 i50", "172 181": "i17 i18"}, prints="i18"
    ),
    f"{RECOMMEND} --histories in.jsonl --out out.jsonl": Run({}, leaves="out.jsonl"),
    f"{CONVERT} ml-latest ml-latest-small dataset/ml-latest-small": Run(
        {}, leaves="dataset/ml-latest-small/ml-latest-small.inter"
    ),
    f"{CONVERT} ml-1m ml-1m dataset/ml-1m": Run({}, leaves="dataset/ml-1m/ml-1m.inter"),
    f"{CONVERT} amazon-2014 FOLDER dataset/amazon-beauty": Run(
        {}, leaves="dataset/amazon-beauty/amazon-beauty.item"
    ),
    "python -m recbole_llamarec.split --dataset=ml-latest-small --out=split.tsv": Run(
        {"--dataset=ml-latest-small": TINY}, leaves="split.tsv"
    ),
    "python -m recbole_llamarec.analysis saved/LlamaRec-….users.csv --out analysis": Run(
        {"--out": "--candidates=8 --out"}, leaves="analysis.html"
    ),
    "python -m recbole_llamarec.report saved/LlamaRec-….pth": Run(
        {}, leaves="saved/LlamaRec-….html"
    ),
    "python -m recbole_llamarec.warm_start --datasets ml-100k --out warm "
    '--lora_target_modules="[…]"': Run(
        {
            "ml-100k": "tiny --config_files run.yaml --steps=2 --rerank_candidates=20",
            "[…]": "['q_proj']",
        },
        leaves="warm/adapter_model.safetensors",
    ),
}

TORCH = "pip install torch==2.13.0 && pip install --no-deps -r requirements.txt"
INSTALLS = "it installs packages: .ci/run"
MAIN_JOB = "python run_recbole.py --model=LlamaRec --dataset=ml-100k"
ELSEWHERE = {
    f"{TORCH} && {MAIN_JOB}": "it takes minutes: tests/test_main_job.py, in small",
    f"{TORCH} -r tests/requirements.txt && python -m pytest": "it would run this test: .ci/run",
    "python -m pytest": "it would run this test: .ci/run",
    f"{MAIN_JOB} --config_files=properties/ranking-adapter.yaml": (
        "it takes half an hour: tests/test_trainer.py tunes in the same way"
    ),
    f"{MAIN_JOB} --config_files=properties/llama-2-7b-qlora.yaml --gpu_id=0,1,2,3 --nproc=4": (
        "it needs four GPUs: tests/test_trainer.py runs two processes on a CPU"
    ),
    "pip install .": "it installs the package: tests/test_packaging.py",
    "python -m recbole_llamarec.serve --checkpoint saved/LlamaRec-….pth": (
        "it serves until it is stopped: tests/serve/test_command.py"
    ),
    'pip install "recbole-llamarec[serve]" # the tested releases of what it adds stand in '
    "tests/requirements.txt": "it installs packages: tests/test_packaging.py, without the extra",
    'curl -H "Content-Type: application/json" -d \'{"history": ["1", "50"], "k": 3}\' '
    "http://127.0.0.1:8000/recommend": "it needs a service: tests/serve/test_service.py",
    'curl -H "Content-Type: application/json" -d \'{"history": ["1"], "candidates": ["172", '
    '{"text": "A film of my own"}], "prompt": true}\' http://127.0.0.1:8000/rank': (
        "it needs a service: tests/serve/test_service.py"
    ),
    "pip install hyperopt": INSTALLS,
    "pip install 'ray[tune]'": "it installs packages: tests/test_hyper_tuning.py, where Ray is",
    "python benchmarks/run.py benchmarks/suites/paper.yaml --data dataset": (
        "it takes days: tests/benchmarks/test_suite.py runs a suite of five cells"
    ),
    "python benchmarks/run.py benchmarks/suites/ranker.yaml --data dataset": (
        "it takes hours: tests/benchmarks/test_suite.py runs a suite of five cells"
    ),
    "python benchmarks/run.py benchmarks/suites/settings.yaml --data dataset": (
        "it takes hours: tests/benchmarks/test_suite.py runs a suite of five cells"
    ),
    "python benchmarks/run.py benchmarks/suites/retrievers.yaml --data dataset": (
        "it takes hours: tests/benchmarks/test_suite.py runs a suite of five cells"
    ),
    "python benchmarks/speed.py ml-100k --out benchmarks/results/speed --gguf … --prompts 8 "
    "--rows 500": "it takes hours: tests/benchmarks/test_speed.py",
    "/usr/bin/time -v python -m recbole_llamarec.convert …": (
        "it measures 2 GB: tests/data/test_convert.py"
    ),
}


def test_every_command_is_run_or_says_where_it_is():
    assert set(commands(README)) == {*RUNS, *ELSEWHERE}
    for reason in ELSEWHERE.values():
        (file,) = re.findall(r"[\w./]*(?:tests|\.ci)/[\w/]+(?:\.py)?", reason)
        assert (ROOT / file).is_file(), file


def test_commands_are_found_in_blocks_and_in_lines():
    text = "Run `python a.py`, not `a.py`:\n\n```bash\npython  b.py\npip install b\n```\n`pip x`\n"
    assert commands(text) == ["python b.py", "pip install b", "python a.py", "pip x"]


def write_raw_files(folder: Path) -> None:
    """One interaction in each of the forms that the README converts."""
    for name in ("ml-latest-small", "ml-1m", "FOLDER"):
        (folder / name).mkdir()
    latest = folder / "ml-latest-small"
    (latest / "ratings.csv").write_text("userId,movieId,rating,timestamp\n2,1,4.0,964982703\n")
    (latest / "movies.csv").write_text("movieId,title,genres\n1,Heat (1995),Action\n")
    (folder / "ml-1m" / "ratings.dat").write_text("1::10::5::978300760\n")
    (folder / "ml-1m" / "movies.dat").write_text("10::Heat (1995)::Action\n")
    (folder / "FOLDER" / "ratings_Beauty.csv").write_text("A1,B1,5.0,1369699200\n")
    (folder / "FOLDER" / "meta_Beauty.json").write_text("{'asin': 'B1', 'title': 'Soap'}\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama, trained) -> Path:
    """A folder with everything that the README's commands name, under the same names."""
    folder = tmp_path_factory.mktemp("readme")
    settings = tiny_settings(folder, tiny_llama) | {"epochs": 1}
    of_run = {k: v for k, v in settings.items() if k not in ("model", "dataset", "checkpoint_dir")}
    (folder / "run.yaml").write_text(yaml.safe_dump(of_run))
    (folder / "in.jsonl").write_text(json.dumps(["i1", "i2"]) + "\n")
    for name in ("run_recbole.py", "properties"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "saved").mkdir()
    for ending in (".pth", ".users.csv", ".report.json"):
        shutil.copy(
            trained.checkpoint.with_suffix(ending), folder / "saved" / f"LlamaRec-…{ending}"
        )
    write_raw_files(folder)
    return folder


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("command", RUNS)
def test_a_command_of_the_readme(command, place, monkeypatch, capsys, caplog):
    run = RUNS[command]
    monkeypatch.chdir(place)
    python, *arguments = shlex.split(changed(command, run.changes))
    assert python == "python"
    is_module = arguments[0] == "-m"
    name, options = (arguments[1], arguments[2:]) if is_module else (arguments[0], arguments[1:])
    monkeypatch.setattr(sys, "argv", [name, *options])
    caplog.set_level("INFO")
    if is_module:
        loaded = f"{name}.__main__" if name == "recbole_llamarec" else name
        monkeypatch.delitem(sys.modules, loaded, raising=False)  # as in a new process
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
    assert run.prints in capsys.readouterr().out + caplog.text
    assert not run.leaves or (place / run.leaves).stat().st_size


TINY_IN_PYTHON = {'dataset="ml-100k"': 'dataset="tiny", config_file_list=["run.yaml"]'}
BLOCKS = {  # a line of each Python block, and what is changed in it
    "README.md": {
        'result = run_recbole(model="LlamaRec"': TINY_IN_PYTHON,
        "recommender = Recommender": {'"172"': '"i17"', '"50"': '"i50"', '"1"': '"i1"'},
    },
    "recbole_llamarec/README.md": {
        "register_retriever(NextAfterLast": TINY_IN_PYTHON,
        '"verbalizer_labels": ': TINY_IN_PYTHON,
        'LOSSES["hinge"]': TINY_IN_PYTHON,
    },
}


@pytest.mark.parametrize("file", BLOCKS)
def test_python_blocks(file, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["python"])
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(blocks) == len(BLOCKS[file])
    for block, (line, changes) in zip(blocks, BLOCKS[file].items(), strict=True):
        assert line in block
        monkeypatch.setitem(sys.modules, "__main__", main := ModuleType("__main__"))
        names = vars(main)
        exec(changed(block, changes), names)
        assert "result" not in names or names["result"]["test_result"]["recall@10"] > 10 / 60


def test_the_readme_changes_no_key_that_there_is_not(workdir):
    section = README.split("\n## Change one thing\n")[1].split("\n## ")[0]
    keys = set(re.findall(r"--(\w+)=", section))
    assert len(keys) > 20
    assert keys <= {*llamarec_keys(), *known_keys(Config(model="LlamaRec", dataset="ml-100k"))}
