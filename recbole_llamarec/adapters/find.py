"""Finding the adapter that was trained on exactly this run's training part: ``lora_adapter: auto``.

An adapter is in-domain: what it has learnt on one data set does not carry to another. It is taken
where its card names the digest of the run's training part, so that no validation or test target of
the run has been among what it was trained on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from recbole_llamarec.adapters.card import (
    CARD_FILE,
    differing,
    prompt_settings,
    read_card,
    training_part_digest,
)
from recbole_llamarec.ranking.model.embedded import cache_root
from recbole_llamarec.settings import LlamaRecSettings

logger = logging.getLogger(__name__)

AUTO = "auto"  # the value of lora_adapter
SHIPPED = Path(__file__).parent


def adapter_folders(cache_dir: str | None = None) -> list[Path]:
    """Every folder with a card: those of the user's cache, then those of the package.

    Args:
        cache_dir: the cache, see :func:`~recbole_llamarec.ranking.model.embedded.cache_root`.
    """
    roots = (cache_root(cache_dir) / "adapters", SHIPPED)
    return [card.parent for root in roots for card in sorted(root.glob(f"*/{CARD_FILE}"))]


def find_adapter(settings: LlamaRecSettings, dataset: Any, language_model: str) -> Path | None:
    """The adapter that was trained for a run, if there is one.

    Where those of its training part and model differ in their prompts, a warning says how.

    Args:
        settings: of the run.
        dataset: the training part, a RecBole data set.
        language_model: name of the loaded model.

    Returns:
        its directory; ``None`` where no card fits.
    """
    part, prompts, refused = None, prompt_settings(settings), []
    for folder in adapter_folders(settings.llm.cache_dir):
        card = read_card(folder)
        if card is None or card.language_model != language_model:
            continue
        part = part or training_part_digest(dataset)
        if card.training_part != part:
            continue
        reasons = differing(card.prompts, prompts)
        if not reasons:
            return folder
        refused.append((folder, "; ".join(reasons)))
    for other in refused:
        logger.warning("The adapter %s is not taken: %s.", *other)
    return None


def check_adapter(directory: Path, dataset: Any) -> None:
    """Refuse an adapter that may have been trained on targets of the run.

    Args:
        directory: of an adapter that the run names; one without a card passes.
        dataset: the training part, a RecBole data set.

    Raises:
        ValueError: its card names the run's data set with another training part, be it of an
            adapter that it has started from.
    """
    card = read_card(directory)
    if card is None or (name := dataset.dataset_name) not in card.training_parts:
        return
    if (seen := card.training_parts[name]) != (part := training_part_digest(dataset)):
        raise ValueError(
            f"lora_adapter: {str(directory)!r} was trained on another training part of {name} "
            f"(digest {seen}, this run's {part}), so that it may hold this run's "
            "validation or test targets. Prepare and split the data as its card says, or set "
            "lora_adapter to ~."
        )
