"""The models that this package and its users add to RecBole, and their default settings.

Registration writes here and shims read here, so that neither imports the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
MODELS = {"LlamaRec": "recbole_llamarec.llamarec", "LRURec": "recbole_llamarec.retrieval.lrurec"}
TRAINERS = {
    "LlamaRec": "recbole_llamarec.trainer",
    "LRURec": "recbole_llamarec.retrieval.lrurec_trainer",
}

# Retrievers of other packages and their default settings, by class name.
registered_classes: dict[str, type] = {}
default_settings: dict[str, Mapping[str, Any]] = {}


def properties_file(kind: str, name: str) -> Path:
    """Path of ``properties/<kind>/<name>.yaml``, in a checkout or in an installed package.

    A wheel carries the folder inside the package; a checkout (and an editable install) has it
    beside the package.

    Args:
        kind: a folder of ``properties/``, such as ``model`` or ``dataset``.
        name: name of the model or the data set.

    Returns:
        the path; the file need not exist.
    """
    installed = PACKAGE / "properties"
    root = installed if installed.is_dir() else PACKAGE.parent / "properties"
    return root / kind / f"{name}.yaml"
