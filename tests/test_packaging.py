"""What a package carries and asks for; an installed one works from any directory."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "recbole_llamarec"
CODE = """
import recbole_llamarec, sys
assert "transformers" not in sys.modules  # importing it takes seconds
from recbole.config import Config
config = Config(model="LlamaRec", dataset="ml-100k")
print(recbole_llamarec.__file__, config["rerank_candidates"], config["item_text_format"])
"""
OUTSIDE = ("report", "serve", "analysis")  # what the core does not know
IN_REQUIREMENTS = {"yaml": "pyyaml"}  # names of distributions, where another than the module's
OPTIONAL = {"pyarrow", "ray"}  # imported where they are used
# What others import: transformers the first two, RecBole's thop the last one (for its distutils).
NOT_IMPORTED = {"accelerate", "gguf", "setuptools"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the package, as its path without ending below it."""
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).with_suffix("").as_posix()
        yield name, ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Full names of all that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def is_core(name: str) -> bool:
    return name.split("/")[0] not in OUTSIDE


def third_party(is_wanted: Callable[[str], bool]) -> set[str]:
    """Top names of what some modules import that is neither Python's nor this package."""
    names = {
        name.split(".")[0]
        for module, tree in modules()
        if is_wanted(module)
        for name in imported(tree)
    }
    return names - set(sys.stdlib_module_names) - {"recbole_llamarec"}


def setup_options(section: str) -> dict[str, list[str]]:
    """A section of ``setup.cfg``, each value as its lines."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return {key: value.split("\n") for key, value in config[section].items()}


def distributions(lines: list[str]) -> set[str]:
    """Names of required distributions without their versions."""
    names = (line.split("=")[0].split(">")[0].split("[")[0].strip() for line in lines)
    return {name for name in names if name}


def test_the_core_imports_neither_report_nor_service():
    outside = {f"recbole_llamarec.{name}" for name in OUTSIDE}
    wrong = {
        name
        for name, tree in modules()
        if is_core(name)
        and name != "__main__"  # which hangs the report onto the trainer
        and any(name.startswith(tuple(outside)) for name in imported(tree))
    }
    assert not wrong


def test_the_package_asks_for_what_the_core_imports():
    names = {
        name.split(".")[0] for own, tree in modules() if is_core(own) for name in imported(tree)
    }
    needed = names - set(sys.stdlib_module_names) - OPTIONAL - {"recbole_llamarec"}
    asked = distributions(setup_options("options")["install_requires"])
    assert {IN_REQUIREMENTS.get(name, name) for name in needed} == asked - NOT_IMPORTED


@pytest.mark.parametrize(
    ("extra", "folders"), [("report", ("report", "analysis")), ("serve", ("serve",))]
)
def test_extras_ask_for_what_their_modules_import(extra, folders):
    needed = third_party(lambda module: module.split("/")[0] in folders)
    extras = setup_options("options.extras_require")
    asked = distributions(extras[extra] + setup_options("options")["install_requires"])
    of_others = {"pydantic_core": "pydantic", "prometheus_client": "prometheus-client"}
    of_others |= {"starlette": "fastapi"}
    assert {of_others.get(name, name) for name in needed} <= asked


def test_hints_and_pages_name_extras_that_there_are():
    extras = set(setup_options("options.extras_require"))
    files = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = [
        extra
        for file in files
        for extra in re.findall(r'install "(\S*\[\w+\])"', file.read_text(encoding="utf-8"))
    ]
    assert len(named) > 5 and set(named) <= {f".[{extra}]" for extra in extras}


def test_no_extra_asks_for_what_recboles_metadata_pins():
    """pip would find no version that suits both."""
    of_recbole = [own for own in map(Requirement, metadata.requires("recbole")) if not own.marker]
    pinned = {own.name for own in of_recbole if re.search("<|==", str(own.specifier))}
    assert {"colorlog", "ray"} <= pinned
    extras = setup_options("options.extras_require").values()
    assert not pinned & distributions([line for lines in extras for line in lines])


def test_every_package_and_property_folder_is_listed():
    folders = [PACKAGE, *(file.parent for file in PACKAGE.rglob("*/__init__.py"))]
    expected = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    properties = {"", ".dataset", ".hyper", ".model"}
    expected |= {f"recbole_llamarec.properties{folder}" for folder in properties}
    assert set(filter(None, setup_options("options")["packages"])) == expected


@pytest.mark.parametrize(("hidden", "n_writers"), [("nothing_of_this_name", 1), ("plotly", 0)])
def test_the_command_writes_reports_where_the_extra_is_installed(hidden, n_writers):
    code = (
        f"import sys; sys.modules[{hidden!r}] = None; import recbole_llamarec.__main__\n"
        "from recbole_llamarec.trainer import LlamaRecTrainer\n"
        "loaded = {name for name, module in sys.modules.items() if module}\n"
        "print(len(LlamaRecTrainer.after_test), {'plotly', 'jinja2', 'pydantic'} & loaded)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"{n_writers} set()"


@pytest.mark.slow
def test_an_installed_package_works_from_any_directory(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PACKAGE, source / "recbole_llamarec")
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
    assert (site / "recbole_llamarec" / "properties" / "hyper" / "llamarec.test").is_file()
    assert (site / "recbole_llamarec" / "report" / "page.html").is_file()
    assert (site / "recbole_llamarec" / "serve" / "page.html").is_file()
