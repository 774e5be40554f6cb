"""Shims without which RecBole cannot be imported on current releases of its dependencies."""

from __future__ import annotations

import importlib
import sys
import types

import numpy as np


def restore_numpy_names() -> None:
    """Set the names that RecBole's ``Config.compatibility_settings`` reads and NumPy 2 removed."""
    for removed, current in {
        "float_": np.float64,
        "complex_": np.complex128,
        "unicode_": np.str_,
        "bool8": np.bool_,
    }.items():
        if removed not in np.__dict__:
            setattr(np, removed, current)


def stub_ray_if_unusable() -> None:
    """Put a stub in the place of Ray where Ray cannot be imported.

    ``recbole.quick_start`` imports ``ray.tune``, which only hyper-parameter tuning uses. Ray is
    absent on Python 3.12 with RecBole's pin, and ``ray<=2.6.3`` cannot be imported beside
    ``setuptools>=82`` (no ``pkg_resources``). The stub's ``report`` does nothing, as Ray's does
    outside a tuning session.
    """
    try:
        importlib.import_module("ray.tune")
        return
    except Exception:  # a broken Ray raises ImportError, AttributeError or worse
        tune = types.ModuleType("ray.tune")
        tune.report = lambda metrics: None  # type: ignore[attr-defined]
    try:
        ray = importlib.import_module("ray")  # Ray without its tune extra
    except Exception:
        for name in [name for name in sys.modules if name.split(".")[0] == "ray"]:
            del sys.modules[name]
        ray = types.ModuleType("ray")
        ray.__path__ = []  # a package, so that `import ray.tune` finds the stub
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})


def install() -> None:
    """Install both shims; a second call changes nothing."""
    restore_numpy_names()
    stub_ray_if_unusable()
