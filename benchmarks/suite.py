"""A suite: what to run, as a YAML file, and the cells that it is made of."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MODEL_KEYS = {
    "name",
    "label",
    "grid",
    "settings",
    "data_settings",
    "datasets",
    "retriever",
    "seeds",
    "validation_only",
}
CELL_LINE = "cell.json"  # what a finished cell leaves in its work folder until it is collected
CELL_USERS = "users.csv"
ID_DIGITS = 12
IDENTITY = (
    *("dataset", "model", "seed", "settings", "run_settings", "retriever"),
    "validation_only",
)


@dataclass(frozen=True)
class Cell:
    """One run: a model on a data set with a seed and its settings.

    Attributes:
        dataset: name of a data set with a property file.
        model: a retriever's class name, or LlamaRec.
        seed: RecBole's seed.
        choice: the grid's values in this cell.
        settings: the retriever's own keys (``retriever_config``), or LlamaRec's.
        run_settings: keys of the run: data, metrics.
        retriever: for LlamaRec, the id of the cell that trained its retriever.
        label: what tables call it, where a suite has a model in several variants.
        validation_only: choices are made on validation, so that the test set is not touched.
    """

    dataset: str
    model: str
    seed: int
    choice: Mapping[str, Any]
    settings: Mapping[str, Any]
    run_settings: Mapping[str, Any]
    retriever: str | None = None
    label: str = ""
    validation_only: bool = False

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.label or self.model

    @property
    def id(self) -> str:
        """A short hash of the settings that determine the result; names and labels do not."""
        settings = {name: getattr(self, name) for name in IDENTITY}
        text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]

    @property
    def name(self) -> str:
        """What a reader calls it: data set, title, choice and seed."""
        choice = [f"{keys.split(',')[0]}={value}" for keys, value in self.choice.items()]
        return ".".join([self.dataset, self.title, *choice, f"seed={self.seed}"])


@dataclass(frozen=True)
class ModelPlan:
    """A model's part of a suite, for one data set; fields as in :class:`Cell`."""

    name: str
    label: str
    grid: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Any]
    data_settings: Mapping[str, Any]
    retriever: str | None
    seeds: tuple[int, ...]
    validation_only: bool

    @property
    def title(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class Suite:
    """A suite as its file says it.

    Attributes:
        name: the file's name without its ending.
        run_settings: keys of every run (metrics, topk, valid_metric ...).
        plans: for each data set, its models in order.
    """

    name: str
    run_settings: Mapping[str, Any]
    plans: Mapping[str, tuple[ModelPlan, ...]]

    @property
    def n_cells(self) -> int:
        """Cells of the whole suite."""
        plans = itertools.chain.from_iterable(self.plans.values())
        return sum(len(plan.grid) + len(plan.seeds) - 1 for plan in plans)

    def cells(self, results: Mapping[str, Mapping[str, Any]]) -> Iterator[Cell]:
        """The cells that can be told by now, in order.

        A grid is run at the first seed; which of its cells is run at the other seeds is known when
        all of them are finished, and LlamaRec's cells when its retriever's are.

        Args:
            results: lines of finished cells, by id.
        """
        for dataset, plans in self.plans.items():
            chosen: dict[str, Mapping[str, Any]] = {}
            for plan in plans:
                if plan.retriever is not None and plan.retriever not in chosen:
                    continue
                first = [self._cell(dataset, plan, c, plan.seeds[0], chosen) for c in plan.grid]
                yield from first
                best = best_choice(first, results)
                if best is None:
                    continue
                chosen[plan.title] = best
                for seed in plan.seeds[1:]:
                    yield self._cell(dataset, plan, best, seed, chosen)

    def finished(self, lines: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
        """Those lines of a folder of results, by id, that are of cells of this suite."""
        finished: dict[str, Mapping[str, Any]] = {}
        while True:  # a finished grid tells further cells
            before = len(finished)
            ids = [cell.id for cell in self.cells(finished)]
            finished = {id_: lines[id_] for id_ in ids if id_ in lines}
            if len(finished) == before:
                return finished

    def cells_of(
        self, dataset: str, plan: ModelPlan, results: Mapping[str, Mapping[str, Any]]
    ) -> tuple[list[Cell], list[Cell]]:
        """One model's cells on one data set: those of its grid, and those at the other seeds."""
        key = (dataset, plan.title)
        cells = [cell for cell in self.cells(results) if (cell.dataset, cell.title) == key]
        return cells[: len(plan.grid)], cells[len(plan.grid) :]

    def _cell(self, dataset, plan: ModelPlan, choice, seed: int, chosen) -> Cell:
        retriever = None
        if plan.retriever is not None:
            of = next(p for p in self.plans[dataset] if p.title == plan.retriever)
            retriever = self._cell(dataset, of, chosen[of.title], seed, {}).id
        return Cell(
            dataset=dataset,
            model=plan.name,
            seed=seed,
            choice=choice,
            settings={**plan.settings, **spread(choice)},
            run_settings={**self.run_settings, **plan.data_settings},
            retriever=retriever,
            label=plan.label,
            validation_only=plan.validation_only,
        )


def retriever_file(work: Path) -> Path:
    """The retriever's checkpoint that a finished cell left in its work folder."""
    return work / "retriever.pth"


def spread(choice: Mapping[str, Any]) -> dict[str, Any]:
    """One value for each key, where a grid names several keys at once (``a, b: 0.1``)."""
    return {key.strip(): value for keys, value in choice.items() for key in keys.split(",")}


def best_choice(cells: list[Cell], results: Mapping[str, Mapping[str, Any]]):
    """The grid's choice with the best validation score, the first among equals.

    Returns:
        ``None`` until all the cells are known and finished.
    """
    if not cells or any(cell.id not in results for cell in cells):
        return None
    return max(cells, key=lambda cell: results[cell.id]["valid_score"]).choice


def read_suite(file: str | Path) -> Suite:
    """Read a suite.

    Raises:
        ValueError: the file names an unknown key, or a retriever that stands behind its LlamaRec.
    """
    file = Path(file)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    plans: dict[str, list[ModelPlan]] = {name: [] for name in content["datasets"]}
    for model in content["models"]:
        if unknown := set(model) - MODEL_KEYS:
            raise ValueError(
                f"{file}: models: {model.get('label', model.get('name'))}: unknown "
                f"{sorted(unknown)}; allowed: {sorted(MODEL_KEYS)}"
            )
        for dataset, changes in content["datasets"].items():
            if dataset not in model.get("datasets", [dataset]):
                continue
            title = model.get("label", model["name"])
            plan = _plan(model, (changes or {}).get(title, {}), tuple(content["seeds"]))
            if plan.retriever not in (None, *(before.title for before in plans[dataset])):
                raise ValueError(
                    f"{file}: models: {title} needs its retriever {plan.retriever!r} before it"
                )
            plans[dataset].append(plan)
    run_settings = {key: content[key] for key in ("metrics", "topk", "valid_metric")}
    return Suite(file.stem, run_settings, {name: tuple(of) for name, of in plans.items()})


def _plan(
    model: Mapping[str, Any], changes: Mapping[str, Any], seeds: tuple[int, ...]
) -> ModelPlan:
    grid = {**model.get("grid", {}), **changes.get("grid", {})}
    choices = tuple(
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    )
    return ModelPlan(
        name=model["name"],
        label=model.get("label", ""),
        grid=choices,
        settings={**model.get("settings", {}), **changes.get("settings", {})},
        data_settings={**model.get("data_settings", {}), **changes.get("data_settings", {})},
        retriever=model.get("retriever"),
        seeds=seeds[: changes.get("seeds", model.get("seeds"))],
        validation_only=model.get("validation_only", False),
    )
