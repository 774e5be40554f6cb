"""What DESIGN asks of the source text: sizes of modules, and doors that are not gone around."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGE = ROOT / "recbole_llamarec"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = {"retrieval/lrurec.py": 320}  # the whole of a model, with its trainer apart


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def names_in(node: ast.AST) -> set[str]:
    """Variables, attributes and string keys that an expression reads."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            names.add(part.id)
        elif isinstance(part, ast.Attribute):
            names.add(part.attr)
        elif isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Constant):
            names.add(str(part.slice.value))
    return names


def imports_of(module: Path) -> set[str]:
    """Modules that a module imports anywhere but for annotations."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for_annotations = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and names_in(node.test) == {"TYPE_CHECKING"}
        for inner in ast.walk(node)
    }
    imported = set()
    for node in ast.walk(tree):
        if node in for_annotations:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return imported


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_is_read_at_a_sitting(module):
    n_lines = len(module.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MOST_LINES.get(name_of(module), 300)


def test_nobody_asks_which_ranker_it_has():
    pattern = re.compile(r"isinstance\(.*[Rr]anker")
    lines = [
        f"{name_of(module)}:{number}"
        for module in MODULES
        for number, line in enumerate(module.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert lines == []


def test_the_ranking_method_is_compared_with_no_name():
    """But "none", which names no ranker; rankers are looked up in ``ranking/protocol.py``."""
    found = []
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Match):
                sides: list[ast.AST] = [node.subject]
                texts = {c.value for case in node.cases for c in ast.walk(case.pattern)
                         if isinstance(c, ast.Constant)}  # fmt: skip
            elif isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                texts = {c.value for side in sides for c in ast.walk(side)
                         if isinstance(c, ast.Constant)}  # fmt: skip
            else:
                continue
            reads = set().union(*map(names_in, sides))
            compared = {text for text in texts if isinstance(text, str)} - {"ranking_method"}
            if "ranking_method" in reads and compared - {"none"}:
                found.append(f"{name_of(module)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("ranking", ("recbole", "recbole_llamarec.retrieval", "recbole_llamarec.scoring")),
        ("retrieval", ("transformers", "peft", "recbole_llamarec.ranking")),
        ("scoring", ("recbole", "recbole_llamarec.retrieval", "recbole_llamarec.tuning")),
        ("data/convert", ("recbole",)),
    ],
)
def test_a_room_imports_nothing_of_what_it_does_not_know(room, forbidden):
    for module in (PACKAGE / room).rglob("*.py"):
        for name in imports_of(module):
            for other in forbidden:
                assert name != other and not name.startswith(f"{other}."), name_of(module)


def test_the_core_imports_neither_pages_nor_service():
    """The command line alone installs the report, where what it needs is there."""
    optional = ("report", "serve", "analysis")
    for module in MODULES:
        if not name_of(module).startswith(("report/", "serve/", "analysis", "__main__")):
            for name in imports_of(module):
                assert not any(
                    name == f"recbole_llamarec.{own}" or name.startswith(f"recbole_llamarec.{own}.")
                    for own in optional
                ), f"{name_of(module)} imports {name}"
