"""One user's windows, put together."""

from recbole_llamarec.data.windows import joined_windows


def test_the_places_of_targets_count_over_all_pieces():
    windows, targets = [[1, 2], [7, 8], [2, 3]], [3, 9, 4]
    pieces, before = joined_windows(windows, targets, [(1, 0), (5, 0), (5, 0)])
    assert sorted(piece.tolist() for piece in pieces) == [[1, 2, 3, 4], [7, 8, 9]]
    joined = [item for piece in pieces for item in piece.tolist()]
    assert [joined[place] for place in before] == targets


def test_rows_of_one_time_may_come_in_any_order_and_stand_in_front():
    windows, targets = [[5, 6], [3, 4], [4, 5]], [7, 5, 6]
    pieces, before = joined_windows(windows, targets, [(1, 0)] * 3)
    assert [piece.tolist() for piece in pieces] == [[3, 4, 5, 6, 7]]
    assert before == [4, 2, 3]


def test_the_longest_window_that_fits_comes_first():
    """Where an item repeats, a short window fits in several places."""
    windows, targets = [[1], [1, 2], [1, 2, 1]], [2, 1, 2]
    pieces, _ = joined_windows(windows, targets, [(1, 0), (2, 0), (2, 0)])
    assert [piece.tolist() for piece in pieces] == [[1, 2, 1, 2]]


def test_a_row_within_another_of_its_time_adds_nothing():
    pieces, before = joined_windows([[1, 2, 3], [2]], [4, 3], [(1, 0), (1, 1)])
    assert [piece.tolist() for piece in pieces] == [[1, 2, 3, 4]] and before == [3, 2]
