"""The wheel carries the property files; an installed package works from any directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import recbole_llamarec, sys
assert "transformers" not in sys.modules  # importing it takes seconds
from recbole.config import Config
config = Config(model="LlamaRec", dataset="ml-100k")
print(recbole_llamarec.__file__, config["rerank_candidates"], config["item_text_format"])
"""


def test_an_installed_package_works_from_any_directory(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "recbole_llamarec", source / "recbole_llamarec")
    shutil.copytree(ROOT / "properties", source / "properties")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*install, "--no-index", "--target", str(site), str(source)],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    file, candidates, text = done.stdout.strip().split(" ", 2)
    assert Path(file).is_relative_to(site)
    assert (candidates, text) == ("20", "{movie_title} ({release_year})")
    assert (site / "recbole_llamarec" / "properties" / "llama-2-7b-qlora.yaml").is_file()
    assert (site / "recbole_llamarec" / "report" / "page.html").is_file()
    assert (site / "recbole_llamarec" / "serve" / "page.html").is_file()
