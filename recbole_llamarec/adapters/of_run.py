"""Saving the adapter that a run has tuned, with its card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from recbole_llamarec.adapters.card import (
    AdapterCard,
    prompt_settings,
    read_card,
    training_part_digest,
)
from recbole_llamarec.adapters.find import AUTO
from recbole_llamarec.ranking.model.adapter import save_adapter


def card_of_run(scorer: Any, journal: Any, config: Any) -> AdapterCard:
    """Describe a run's adapter as it is now; one that was found keeps its card.

    An adapter that started from another one has been tuned on that one's samples too.

    Args:
        scorer: the ``LanguageModel`` of the run.
        journal: what the run's trainer has recorded.
        config: RecBole's ``Config`` of the run.
    """
    if scorer.card is not None:
        return scorer.card
    settings, dataset = scorer.parts.settings, scorer.parts.dataset
    start = None
    if settings.lora_adapter not in (None, AUTO):
        start = read_card(Path(settings.lora_adapter))
    seen = dict(start.training_parts) if start else {}
    seen.pop(dataset.dataset_name, None)
    return AdapterCard(
        dataset=dataset.dataset_name,
        training_part=training_part_digest(dataset),
        language_model=scorer.ranker.model.base_model.model.name_or_path,
        prompts=prompt_settings(settings),
        samples=journal.tuning_samples + (start.samples if start else 0),
        seed=config["seed"],
        hours=round(journal.tuning_seconds / 3600 + (start.hours if start else 0), 3),
        command=" ".join(["python", *map(_without_folder, sys.argv)]),
        curve={str(step): score for step, score in journal.ranker.scores.items()},
        validation=journal.validation,
        started_from=seen,
        losses=_by_samples(journal),
    )


def save_with_card(scorer: Any, journal: Any, config: Any, directory: Path) -> None:
    """Save a run's adapter as a PEFT directory with its card; arguments as :func:`card_of_run`."""
    card = card_of_run(scorer, journal, config)
    save_adapter(scorer.ranker.model, directory, card.files())


def _by_samples(journal: Any) -> dict[str, float]:
    """Mean losses of equal parts of tuning, by the samples seen at the end of each."""
    a_step = journal.tuning_samples / max(journal.ranker.losses, default=1)
    means = journal.ranker.mean_losses()
    return {str(round(step * a_step)): round(loss, 4) for step, loss in means.items()}


def _without_folder(argument: str) -> str:
    """An argument without the folders of an absolute path, which are the machine's alone."""
    return Path(argument).name if Path(argument).is_absolute() else argument
