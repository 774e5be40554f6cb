import logging
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_llamarec.ranking.model.batching import (
    TokenBudget,
    length_batches,
    pad_right,
    shared_batches,
)
from recbole_llamarec.ranking.model.packing import MIN_SHARED, pack
from recbole_llamarec.ranking.protocol import Encoded


def encoded(prompts: list[list[int]]) -> list[Encoded]:
    return [Encoded(prompt, [[]], 1, 0, len(prompt)) for prompt in prompts]


def random_prompts(n: int, seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    stem = [generator.randrange(50) for _ in range(MIN_SHARED)]
    return [
        stem[: generator.choice([0, MIN_SHARED])]
        + [generator.randrange(50) for _ in range(generator.randint(1, 40))]
        for _ in range(n)
    ]


class Memory:
    """Sums prompts as long as a pass is not too large, and counts the passes that were."""

    def __init__(self, prompts, limit: int, share: bool, error: Exception) -> None:
        self.prompts, self.limit, self.share, self.error = prompts, limit, share, error
        self.failures = 0

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        batch = [self.prompts[row] for row in rows]
        longest = len(batch) * max(map(len, batch))
        if (len(pack(batch).input_ids) if self.share else longest) > self.limit:
            self.failures += 1
            raise self.error
        return torch.tensor([sum(prompt) for prompt in batch])


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
    input_ids = pad_right([[5, 6, 7], [8]], torch.device("cpu"))
    assert input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_batches_keep_what_is_shared_together_and_within_the_budget(seed):
    generator = random.Random(seed)
    stems = [[generator.randrange(50) for _ in range(40)] for _ in range(4)]
    prompts = [
        [
            *generator.choice(stems),
            *(generator.randrange(50) for _ in range(generator.randint(1, 9))),
        ]
        for _ in range(30)
    ]
    batches = shared_batches(prompts, 120)
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(30))
    sizes = [len(pack([prompts[row] for row in batch]).input_ids) for batch in batches]
    assert max(sizes) <= 120 + MIN_SHARED
    assert len(batches) < sum(map(len, prompts)) / 120 / 2  # alone they would take more rows


def test_a_prompt_beyond_the_budget_is_a_batch_of_its_own():
    batches = shared_batches([[1] * 50, [2] * 5, [3] * 5], 20)
    assert sorted(batch.tolist() for batch in batches) == [[0], [1, 2]]


def test_a_budget_groups_by_length_or_by_what_is_shared():
    prompts = random_prompts(30)
    budget = TokenBudget(100, "llm_batch_tokens")
    by_length = [batch.tolist() for batch in budget.batches(encoded(prompts))]
    assert by_length == [batch.tolist() for batch in length_batches(list(map(len, prompts)), 100)]
    shared = [batch.tolist() for batch in budget.batches(encoded(prompts), share=True)]
    assert shared == [batch.tolist() for batch in shared_batches(prompts, 100)]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("limit", [60, 130, 400])
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "old cpu", "cublas"])
def test_where_memory_runs_out_all_that_is_left_is_cut_anew(error, limit, share, caplog):
    prompts = random_prompts(60)
    initial = 1000
    budget = TokenBudget(initial, "llm_batch_tokens")
    compute = Memory(prompts, limit, share, error)
    results = torch.full((60,), -1)
    with caplog.at_level(logging.WARNING):
        for rows, result in budget.run(encoded(prompts), compute, share):
            assert (results[torch.from_numpy(rows)] == -1).all()
            results[torch.from_numpy(rows)] = result
    assert results.tolist() == [sum(prompt) for prompt in prompts]
    assert 0 < compute.failures <= math.ceil(math.log2(initial / limit))
    assert budget.tokens <= limit + (MIN_SHARED if share else 0)
    assert len(caplog.messages) == compute.failures
    assert f"llm_batch_tokens is {budget.tokens} from now on" in caplog.messages[-1]

    compute.failures = 0  # the budget stays cut
    list(budget.run(encoded(prompts), compute, share))
    assert compute.failures == 0


def test_what_fits_is_computed_as_it_was_grouped():
    prompts = random_prompts(20)
    budget = TokenBudget(90, "llm_batch_tokens")
    compute = Memory(prompts, 90, False, OUT_OF_MEMORY[0])
    run = [rows.tolist() for rows, _ in budget.run(encoded(prompts), compute)]
    assert run == [rows.tolist() for rows in budget.batches(encoded(prompts))]
    assert list(budget.run([], compute)) == []


def test_one_prompt_that_does_not_fit_is_reported_with_the_key():
    prompts = random_prompts(5)
    budget = TokenBudget(200, "train_batch_tokens")
    with pytest.raises(torch.OutOfMemoryError, match="^train_batch_tokens: one prompt of .* token"):
        list(budget.run(encoded(prompts), Memory(prompts, 3, False, OUT_OF_MEMORY[1])))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def compute(rows):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    budget = TokenBudget(200, "llm_batch_tokens")
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        list(budget.run(encoded(random_prompts(5)), compute))
    assert budget.tokens == 200
