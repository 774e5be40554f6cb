"""Items already seen, and their masks."""

from types import SimpleNamespace

import numpy as np
import torch
from recbole.data.interaction import Interaction

from recbole_llamarec.data.seen import (
    CHOSEN_BEFORE,
    SeenItems,
    hidden_targets,
    hidden_warning,
    items_to_mask,
    seen_mask,
)


def test_items_of_histories_and_how_many_are_distinct():
    seen = SeenItems.from_histories([[], [3, 5, 4, 3], [], [7, 8]])
    assert [seen.of(user).tolist() for user in range(4)] == [[], [3, 5, 4, 3], [], [7, 8]]
    assert seen.of(1, before=2).tolist() == [3, 5] and seen.of(1, before=0).tolist() == []
    assert seen.of(99).tolist() == [] and seen.of(-1).tolist() == []
    assert seen.most() == 3 and seen.most(but_last=True) == 3  # the last 3 was chosen before
    assert SeenItems.from_histories([[1, 2]]).most(but_last=True) == 1
    assert SeenItems.nothing().most() == SeenItems.from_histories([[], []]).most() == 0


def test_the_mask_joins_the_window_and_the_training_items():
    seen = SeenItems(starts=np.array([0, 0, 2]), items=np.array([3, 5]))  # user 1 saw 3 and 5
    users, histories = torch.tensor([1, 0]), torch.tensor([[5, 6, 0], [2, 0, 0]])
    mask = seen_mask(users, histories, seen, 8)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[0, 3, 5, 6], [0, 2]]


def test_the_mask_knows_what_came_before_each_row_and_nothing_after_it():
    seen = SeenItems.from_histories([[], [3, 5, 6, 4]])
    users, histories = torch.tensor([1, 1, 1]), torch.tensor([[3], [5], [6]])
    mask = seen_mask(users, histories, seen, 8, before=torch.tensor([1, 2, 3]))
    assert [row.nonzero().flatten().tolist() for row in mask] == [[0, 3], [0, 3, 5], [0, 3, 5, 6]]


def test_targets_that_the_mask_hides_are_counted():
    """Of user 1, who chose 3, 5, 3, 4, 5: the second 3 and, outside of its window, the second 5."""
    rows = Interaction(
        {
            "user_id": torch.tensor([1, 1, 1, 1]),
            "item_id": torch.tensor([5, 3, 4, 5]),
            "item_id_list": torch.tensor([[3, 0], [3, 5], [5, 3], [3, 4]]),
            CHOSEN_BEFORE: torch.tensor([1, 2, 3, 4]),
        }
    )
    dataset = SimpleNamespace(
        inter_feat=rows,
        chosen=SeenItems.from_histories([[], [3, 5, 3, 4, 5]]),
        uid_field="user_id",
        iid_field="item_id",
        item_id_list_field="item_id_list",
    )
    assert [hidden_targets(dataset, rule) for rule in (True, "window", False)] == [2, 1, 0]
    warning = hidden_warning(2, 4, "test")
    assert "2 of 4 test rows" in warning and "rerank_mask_seen: False" in warning
    assert hidden_warning(0, 4, "test") is None


def test_without_training_items_the_mask_is_the_window_alone():
    users, histories = torch.tensor([1, 0]), torch.tensor([[5, 6, 0], [2, 0, 0]])
    mask = seen_mask(users, histories, None, 8)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[0, 5, 6], [0, 2]]


def test_what_is_masked_under_each_value_of_the_key():
    seen = SeenItems(starts=np.array([0, 0, 2]), items=np.array([3, 5]))
    users, histories = torch.tensor([1]), torch.tensor([[5, 6, 0]])
    assert items_to_mask(True, seen) is seen
    assert items_to_mask(False, seen) is None
    window = items_to_mask("window", seen)
    assert seen_mask(users, histories, window, 8).equal(seen_mask(users, histories, None, 8))
