"""The command line hands RecBole's own flags to RecBole."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import recbole_llamarec.__main__ as command

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    calls: list[tuple] = []
    monkeypatch.setattr(command, "run", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def test_defaults(calls, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_recbole.py"])
    command.main()
    ((arguments, options),) = calls
    assert arguments == ("LlamaRec", "ml-100k")
    assert (options["config_file_list"], options["nproc"]) == (None, 1)


def test_recboles_own_flags(calls, monkeypatch):
    flags = ["-m", "LRURec", "-d", "beauty", "--config_files", "a.yaml b.yaml", "--nproc=2"]
    flags += ["--ip=10.0.0.1", "--port=99", "--world_size=4", "--group_offset=2", "--epochs=3"]
    monkeypatch.setattr(sys, "argv", ["run_recbole.py", *flags])
    command.main()
    ((arguments, options),) = calls
    assert arguments == ("LRURec", "beauty")
    assert options == {
        "config_file_list": ["a.yaml", "b.yaml"],
        "nproc": 2,
        "ip": "10.0.0.1",
        "port": "99",
        "world_size": 4,
        "group_offset": 2,
    }


def test_property_files_are_the_packages_where_the_working_folder_has_none(
    calls, tmp_path, monkeypatch
):
    names = "properties/readout.yaml properties/own.yaml a.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_recbole.py", f"--config_files={names}"])
    command.main()
    (tmp_path / "properties").mkdir()
    (tmp_path / "properties" / "readout.yaml").touch()
    command.main()
    elsewhere, here = (options["config_file_list"] for _, options in calls)
    assert elsewhere == [str(ROOT / "properties/readout.yaml"), "properties/own.yaml", "a.yaml"]
    assert here == names.split()


def test_the_script_is_the_command(calls, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_recbole.py", "--model=LRURec"])
    runpy.run_path(str(ROOT / "run_recbole.py"), run_name="__main__")
    assert calls[0][0] == ("LRURec", "ml-100k")
