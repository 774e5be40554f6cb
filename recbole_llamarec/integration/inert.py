"""RecBole's pickled checkpoints, read as data: tensors and plain values, and no class or call.

Whatever a pickle names becomes a stand-in that remembers how it was called and which state it was
given, and does nothing. Tensors and NumPy's scalars are then made from what their stand-ins
remember, a ``Config`` becomes the dict of its settings, and all other objects are left out.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_llamarec.integration.values import LEFT_OUT, plain

REBUILT = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}
SCALARS = {("numpy._core.multiarray", "scalar"), ("numpy.core.multiarray", "scalar")}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NUMPY_SCALAR = re.compile(r"[fiu][248]|[iu]1|b1")


class _StandIn:
    """An object of a pickle: what it was called with, its state and its items."""

    origin: tuple[str, str]

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        made = super().__new__(cls)
        made.state, made.items, made.arguments = None, {}, ()
        return made

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.state: Any
        self.items: dict[Any, Any]
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, item: Any) -> None:
        """Take an item of a list; lists of classes of their own are left out."""


class _InertUnpickler(pickle.Unpickler):
    """Makes stand-ins of all classes and functions, a new one each time that one is named."""

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        """A stand-in."""
        return type("StandIn", (_StandIn,), {"origin": (module, name)})

    def persistent_load(self, pid: Any) -> _StandIn:
        """A stand-in of a tensor's storage."""
        return self.find_class("torch", "storage")(pid)


class _Data:
    """Makes data of an archive's stand-ins."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        """Tensors and plain values, or ``LEFT_OUT``."""
        if isinstance(value, _StandIn):
            return self._of_stand_in(value)
        if isinstance(value, dict):
            return plain({key: self.of(part) for key, part in value.items()})
        if isinstance(value, list | tuple):
            return plain(type(value)([self.of(part) for part in value]))
        return plain(value)

    def _of_stand_in(self, value: _StandIn) -> Any:
        module, name = value.origin
        if value.origin in REBUILT:
            return self._tensor(*value.arguments[:4])
        if value.origin == ("torch._utils", "_rebuild_parameter"):
            return self.of(value.arguments[0])
        if value.origin in SCALARS:
            return _scalar(*value.arguments)
        if value.origin == ("collections", "OrderedDict"):
            return self.of(value.items)
        if value.origin == ("recbole.config.configurator", "Config"):
            state = value.state if isinstance(value.state, dict) else {}
            return self.of(state.get("final_config_dict", LEFT_OUT))
        return LEFT_OUT

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any) -> torch.Tensor:
        stored = self._storage(storage)
        steps = [(n - 1) * step for n, step in zip(size, stride, strict=True)]
        needed = offset + sum(steps) + 1 if math.prod(size) else 0
        if min(offset, *size, *stride, 0) < 0 or needed > len(stored):
            raise ValueError("a tensor is larger than its storage")
        return stored.as_strided(tuple(size), tuple(stride), offset)

    def _storage(self, storage: Any) -> torch.Tensor:
        """The elements of a storage, which several tensors may share."""
        _, kind, key, *_ = storage.arguments[0]
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            dtype = STORAGES[kind.origin[1]]
            # an empty buffer is refused
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _scalar(kind: Any, content: Any) -> Any:
    """NumPy's scalar as a plain number; older pickle protocols write its bytes as Latin-1."""
    if isinstance(content, _StandIn):  # _codecs.encode(text, "latin1")
        content = content.arguments[0].encode("latin1")
    code = kind.arguments[0]
    if not NUMPY_SCALAR.fullmatch(code):
        return LEFT_OUT
    return np.frombuffer(content, dtype=f"<{code}", count=1)[0].item()


def read_pickled(path: Path) -> Any:
    """Read what ``torch.save`` wrote, without any class or function that it names.

    Args:
        path: the file, a zip archive as torch >= 1.6 writes it.

    Returns:
        its tensors, on the CPU, and plain values.

    Raises:
        Exception: of any kind, where the file is damaged or made to do harm.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        with archive.open(name) as file:
            value = _InertUnpickler(file).load()
        return _Data(archive, name.split("/")[0]).of(value)
