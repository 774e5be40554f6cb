import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llamarec.ranking.batching import length_batches, pad_right


@settings(deadline=None)
@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 1000))
def test_batches_are_a_permutation_within_the_budget(lengths, max_tokens):
    batches = length_batches(lengths, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) * longest <= max_tokens or len(batch) == 1
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(lengths, reverse=True)


def test_pad_right():
    input_ids, lengths = pad_right([[5, 6, 7], [8]], torch.device("cpu"))
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert lengths.tolist() == [3, 1]
