"""The first stage: any of RecBole's sequential recommenders puts the catalogue into an order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from recbole.utils import get_trainer

from recbole_llamarec.curve import TrainingCurve
from recbole_llamarec.data.samples import SeenItems
from recbole_llamarec.registry import (
    load_checkpoint,
    logging_stage,
    report_retriever_keys,
    retriever_config,
    retriever_loaders,
    sequential_model_class,
)


def build_retriever(config, name: str, overrides: Mapping, dataset):
    """An untrained retriever for a run.

    Args:
        config: the run's RecBole ``Config``.
        name: a sequential recommender that RecBole knows.
        overrides: RecBole keys on top of the retriever's own defaults.
        dataset: the run's training data set.

    Returns:
        the retriever, an ``nn.Module``, and its own ``Config``.

    Raises:
        ValueError: no such retriever, it is not sequential, or an override is no key of it.
    """
    model_class = sequential_model_class(name)
    own = retriever_config(config, name, overrides)
    report_retriever_keys(own, overrides)
    return model_class(own, dataset).to(own["device"]), own


def train_retriever(
    config,
    retriever,
    train_data,
    valid_data,
    file: Path,
    keep_file: bool,
    show_progress: bool,
    log_directory: str,
    seen: SeenItems | None = None,
    callback_fn: Callable[[int, float], None] | None = None,
) -> TrainingCurve:
    """Train a retriever by RecBole's own trainer and load its best state.

    Args:
        config: the retriever's ``Config``.
        train_data, valid_data: the run's loaders.
        file: where the retriever's own checkpoint goes.
        keep_file: whether it stays there after training.
        show_progress: show RecBole's progress bars.
        log_directory: the run's TensorBoard directory; the retriever's is in it.
        seen: items to mask in validation, as the run masks them in its evaluation.
        callback_fn: called with the epoch and its validation score.

    Returns:
        loss and validation score of each epoch.
    """
    getLogger().info(f"Stage 1 of 2: training the retriever {config['model']}")
    with logging_stage("retriever", log_directory):
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, retriever)
    trainer.saved_model_file = str(file)
    train, valid = retriever_loaders(config, train_data, valid_data)
    curve = TrainingCurve()

    def note(epoch: int, score: float) -> None:
        curve.scores[epoch] = float(score)
        if callback_fn:
            callback_fn(epoch, score)

    with masking_seen(retriever, seen) if seen is not None else nullcontext():
        trainer.fit(train, valid, saved=True, show_progress=show_progress, callback_fn=note)
    curve.losses.update({epoch: float(loss) for epoch, loss in trainer.train_loss_dict.items()})
    _wait_for_all_processes()  # the first one writes the file
    load_retriever(retriever, config["model"], file, key="checkpoint_dir")
    if not keep_file:
        _wait_for_all_processes()  # all read it
        if config["local_rank"] == 0:
            file.unlink()
    return curve


@contextmanager
def masking_seen(retriever, seen: SeenItems) -> Iterator[None]:
    """Within, the retriever's ``full_sort_predict`` gives items already seen the score -inf.

    RecBole's trainers and evaluators, which know no masking for sequential models, then rank such
    items behind all others.
    """
    predict = retriever.full_sort_predict

    def masked(interaction):
        scores = predict(interaction).view(-1, retriever.n_items)  # [B, N]
        users, histories = interaction[retriever.USER_ID], interaction[retriever.ITEM_SEQ]
        return scores.masked_fill(seen_mask(users, histories, seen, retriever.n_items), -torch.inf)

    retriever.full_sort_predict = masked
    try:
        yield
    finally:
        del retriever.full_sort_predict


def _wait_for_all_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def load_retriever(retriever, name: str, file: str | Path, key: str = "retriever_checkpoint"):
    """Load a retriever from a RecBole checkpoint of its model.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is damaged, it is of another model,
            or its shapes are of another data set; the message names ``key``.
    """
    try:
        checkpoint = load_checkpoint(file, map_location=next(retriever.parameters()).device)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error
    found = checkpoint["config"]["model"]
    if found != name:
        raise ValueError(
            f"{key}: {str(file)!r} holds a {found}, but retriever is {name!r}. Set retriever: "
            f"{found}, or name a checkpoint of {name}."
        )
    try:
        retriever.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"{key}: the weights in {str(file)!r} do not fit this {name}. It was trained on other "
            f"data (or filters), or with another retriever_config: {error}"
        ) from error
    retriever.load_other_parameter(checkpoint.get("other_parameter"))


def seen_mask(
    users: torch.Tensor, histories: torch.Tensor, seen: SeenItems, n_items: int
) -> torch.Tensor:
    """Which items each user has already seen.

    An evaluation batch carries only the last items of a history; the user's training interactions
    complete it.

    Args:
        users: internal user ids ``[batch]``.
        histories: item ids ``[batch, length]``, 0 is padding.
        seen: items of the training part.
        n_items: items, padding included.

    Returns:
        bool ``[batch, n_items]``; the padding item's column is True.
    """
    mask = torch.zeros(len(users), n_items, dtype=torch.bool, device=histories.device)
    mask.scatter_(1, histories, True)
    per_user = [seen.of(user) for user in users.tolist()]
    rows = np.repeat(np.arange(len(per_user)), [len(items) for items in per_user])
    columns = np.concatenate([*per_user, np.empty(0, dtype=np.int64)])
    mask[torch.from_numpy(rows), torch.from_numpy(columns)] = True
    mask[:, 0] = True
    return mask


@torch.no_grad()
def top_candidates(
    retriever, rows, k: int, seen: SeenItems | None = None, max_scores: int = 2**24
) -> torch.Tensor:
    """The first ``k`` items of each row in the retriever's order, without a users x items tensor.

    Args:
        retriever: gives scores by ``full_sort_predict``.
        rows: RecBole ``Interaction`` of any number of rows, with users and histories.
        k: candidates of each row.
        seen: items that stand last, as each row's own history does; ``None`` leaves all in.
        max_scores: scores that are held at a time; memory does not grow with the rows.

    Returns:
        int64 item ids ``[rows, k]`` on the CPU, as :func:`ranked_items` would begin.
    """
    retriever.eval()
    n_rows = max(1, max_scores // retriever.n_items)
    parts = []
    for start in range(0, len(rows), n_rows):
        batch = rows[start : start + n_rows].to(retriever.device)
        scores = retriever.full_sort_predict(batch).view(-1, retriever.n_items)  # [B, N]
        last = None
        if seen is not None:
            users, histories = batch[retriever.USER_ID], batch[retriever.ITEM_SEQ]
            last = seen_mask(users, histories, seen, retriever.n_items)
        parts.append(ranked_items(scores, last, k).cpu())
    return torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int64)


def ranked_items(
    scores: torch.Tensor, last: torch.Tensor | None = None, k: int | None = None
) -> torch.Tensor:
    """The items of each row, best first: the retriever's order.

    Equal scores stand in the order of their ids. Items marked in ``last`` stand behind all others,
    in their own order, and the padding item 0 stands at the very end.

    Args:
        scores: ``[batch, n_items]``.
        last: bool ``[batch, n_items]``, or ``None``.
        k: how many items are wanted; ``None`` is all, the padding item included.

    Returns:
        int64 item ids ``[batch, n_items]`` or ``[batch, k]``.

    Raises:
        ValueError: a score is NaN, or there are more than 2^28 items.
    """
    if scores.shape[1] > 2**28:
        raise ValueError(f"{scores.shape[1]} items cannot be put into order, at most 2^28.")
    if torch.isnan(scores[:, 1:]).any():
        raise ValueError("The retriever gives NaN as a score; train it with a lower learning rate.")
    n_items = scores.shape[1]
    id_bits = max(1, (n_items - 1).bit_length())
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # integers in the scores' order
    # one integer for each item, from high bits to low: group, minus score, id
    keys = (-rising << id_bits) + torch.arange(n_items, device=scores.device)  # [B, N]
    if last is not None:
        keys += last.long() << (33 + id_bits)
    keys[:, 0] = torch.iinfo(torch.int64).max >> id_bits << id_bits
    if keys.device.type == "cpu":  # NumPy sorts integers several times as fast as torch
        array = keys.numpy()
        if k is not None and k < n_items:
            array = np.partition(array, k, axis=1)[:, :k]
        keys = torch.from_numpy(np.sort(array, axis=1))
    elif k is None:
        keys = keys.sort(dim=1).values
    else:
        keys = keys.topk(min(k, n_items), dim=1, largest=False).values
    return keys & ((1 << id_bits) - 1)


def scores_from_order(order: torch.Tensor) -> torch.Tensor:
    """Scores whose descending order is ``order``, without ties: minus the position.

    Exact in float32 below 16.7 million items.

    Args:
        order: int64 item ids ``[batch, n_items]``, each row a permutation.

    Returns:
        float32 ``[batch, n_items]``, a new contiguous tensor.
    """
    positions = torch.arange(order.shape[1], dtype=torch.float32, device=order.device)
    return torch.empty(order.shape, dtype=torch.float32, device=order.device).scatter_(
        1, order, -positions.expand(order.shape)
    )
