"""Items already seen, and their masks."""

import numpy as np
import torch

from recbole_llamarec.data.seen import SeenItems, items_to_mask, seen_mask


def test_seen_items_are_targets_and_first_histories():
    # user 1 saw 3, 5, 4; the second history lost its oldest item; user 3 saw 7, 8; user 2 nothing
    users = np.array([1, 1, 3])
    targets = np.array([5, 4, 8])
    histories = np.array([[3, 0], [5, 0], [7, 0]])
    seen = SeenItems.from_rows(users, targets, histories, n_users=4)
    assert [seen.of(u).tolist() for u in range(4)] == [[], [3, 4, 5], [], [7, 8]]
    assert seen.most == 3
    assert seen.of(99).tolist() == [] and seen.of(-1).tolist() == []


def test_the_mask_joins_the_window_and_the_training_items():
    seen = SeenItems(starts=np.array([0, 0, 2]), items=np.array([3, 5]))  # user 1 saw 3 and 5
    users, histories = torch.tensor([1, 0]), torch.tensor([[5, 6, 0], [2, 0, 0]])
    mask = seen_mask(users, histories, seen, 8)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[0, 3, 5, 6], [0, 2]]


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
