"""A checkpoint's language model, loaded for other programs: unquantised, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recbole_llamarec.integration.checkpoints import load_data_and_model
from recbole_llamarec.llamarec import LlamaRec
from recbole_llamarec.ranking.letters import Letters
from recbole_llamarec.ranking.model.embedded import EMBEDDED_MODEL_NAME
from recbole_llamarec.ranking.model.settings import EMBEDDED, LanguageModelSettings, is_gguf
from recbole_llamarec.ranking.protocol import ranker_class_of, reads_labels
from recbole_llamarec.scoring.language_model import LanguageModel, language_model_of
from recbole_llamarec.settings import LlamaRecSettings

BASE_FOLDER = "base"
EMBEDDED_LICENCE = "apache-2.0"


@dataclass(frozen=True)
class BaseModel:
    """The language model without its adapter.

    Attributes:
        name: on the hub; of a local model, the last part of its path.
        revision: on the hub.
        is_on_hub: whether that name gives its very weights, which are not exported then.
        hub_name: what it is or was made from on the hub, where that is known.
        licence: its identifier on the hub, where it is known.
        trained_as: the key that quantised its weights in training, which are exported without.
    """

    name: str
    revision: str | None
    is_on_hub: bool
    hub_name: str | None
    licence: str | None
    trained_as: str | None

    @classmethod
    def of(cls, llm: LanguageModelSettings) -> BaseModel:
        """Describe what a run's settings load."""
        quantised = None if llm.quantization is None else f"llm_{llm.quantization}"
        if llm.name_or_path == EMBEDDED:
            name = EMBEDDED_MODEL_NAME  # another precision of it: the hub's has other bits
            return cls(name, None, False, name, EMBEDDED_LICENCE, quantised)
        path = Path(llm.name_or_path).expanduser()
        if path.is_dir() or is_gguf(llm.name_or_path):
            return cls(path.name, None, False, None, None, quantised)
        name, is_whole = llm.name_or_path, llm.gguf_file is None
        return cls(name, llm.revision, is_whole, name, None, quantised)


@dataclass(frozen=True)
class Export:
    """What is exported.

    Attributes:
        config: RecBole's ``Config`` of the run.
        model: the run's model, which proposes the candidates.
        test: RecBole's test rows.
        ranker: with the language model in ``dtype`` and its adapter.
        settings: the run's.
        base: the language model without its adapter.
        dtype: of the weights that are written.
    """

    config: Any
    model: LlamaRec
    test: Any
    ranker: Letters
    settings: LlamaRecSettings
    base: BaseModel
    dtype: str

    @property
    def tokens(self) -> list[str]:
        """Token of each item id; the first is the padding item's."""
        return self.test.dataset.field2id_token[self.model.ITEM_ID].tolist()


def load_export(checkpoint: Path, data_path: Path | None, dtype: str) -> Export:
    """Load a checkpoint of LlamaRec whose ranker reads labels.

    Args:
        checkpoint: the file; nothing in it is run.
        data_path: folder of data sets, see
            :func:`~recbole_llamarec.integration.checkpoints.load_data_and_model`.
        dtype: of the language model, a value of ``llm_dtype`` but ``auto``.

    Raises:
        FileNotFoundError, ValueError: there is none, it is of another model, or it has no adapter
            of a ranker that reads labels; says what to do.
    """
    config, model, _, _, _, test = load_data_and_model(checkpoint, data_path)
    if config["model"] != "LlamaRec":
        raise ValueError(f"{str(checkpoint)!r} holds a {config['model']}; give one of LlamaRec.")
    scorer = language_model_of(model.scorers.values())
    method, backend = model.settings.ranking_method, model.settings.llm.backend
    if scorer is None or not reads_labels(method):
        raise ValueError(
            f"ranking_method: {method!r} gives candidates no labels, so that another program "
            "cannot read its scores off one prompt. Export a run of ranking_method: verbalizer, "
            "or serve this one with python -m recbole_llamarec.serve."
        )
    if ranker_class_of(method).scores is not Letters.scores:
        raise ValueError(
            f"ranking_method: {method!r} has scores of its own, and another program reads those of "
            "Letters alone. Serve this run with python -m recbole_llamarec.serve."
        )
    if backend != "local":
        raise ValueError(
            f"llm_backend: {backend}: a server has this run's language model, so that there are "
            "no weights to export; publish those that the server loads."
        )
    if not (state := scorer.state()):
        raise ValueError(
            f"{str(checkpoint)!r} holds no adapter: its language model was never loaded. Train "
            "it first; epochs: 0 keeps one that does nothing."
        )
    llm = replace(
        model.settings.llm, dtype=dtype, attention="auto", load_in_4bit=False, load_in_8bit=False
    )
    settings = replace(model.settings, llm=llm)
    parts = replace(scorer.parts, settings=settings, device=torch.device("cpu"))
    plain = LanguageModel(parts)
    plain.load(state)
    ranker: Any = plain.ranker
    base = BaseModel.of(model.settings.llm)
    return Export(config, model.eval(), test, ranker, model.settings, base, dtype)
