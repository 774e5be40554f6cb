"""What a retriever proposes, and the scores that RecBole's evaluator gets."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llamarec.retrieval.candidates import propose

B, N, K = 6, 40, 5


class TableRetriever:
    """Gives each row the scores of its user, flat as RecBole's models may."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.n_items = table, table.shape[1]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        return self.table[interaction["user_id"]].flatten()


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(B, N, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def batch() -> Interaction:
    return Interaction({"user_id": torch.arange(B)})


def test_candidates_are_the_first_items_that_are_not_masked(table, batch):
    masked = torch.rand(B, N, generator=torch.Generator().manual_seed(1)) < 0.5
    candidates = propose(TableRetriever(table), batch, K, masked)
    expected = table.masked_fill(masked, -torch.inf).index_fill(1, torch.tensor(0), -torch.inf)
    assert candidates.items.equal(expected.topk(K).indices)
    assert candidates.order[:, :K].equal(candidates.items)
    assert candidates.order.sort(dim=1).values.equal(torch.arange(N).expand(B, N))
    assert candidates.n_items == N


def test_scores_are_log_probabilities_among_the_candidates(table, batch):
    candidates = propose(TableRetriever(table * 1e4), batch, K)
    assert candidates.scores.dtype == torch.float32 and candidates.scores.shape == (B, K)
    raw = (table * 1e4).gather(1, candidates.items).double()
    exact = raw - raw.logsumexp(dim=1, keepdim=True)
    assert torch.allclose(candidates.scores.double(), exact, rtol=1e-7)
    assert torch.allclose(candidates.scores.exp().sum(1), torch.ones(B))


def test_only_the_given_rows_are_reordered(table, batch):
    candidates = propose(TableRetriever(table), batch, K)
    rows = torch.tensor([4, 1])
    best_first = torch.tensor([[4, 3, 2, 1, 0], [1, 0, 2, 4, 3]])
    scores = candidates.reordered(rows, best_first)
    expected = candidates.order.clone()
    expected[4, :K] = candidates.items[4].flip(0)
    expected[1, :K] = candidates.items[1][best_first[1]]
    assert scores.argsort(dim=1, descending=True).equal(expected)
    assert scores.unique().tolist() == list(range(1 - N, 1))  # no ties


def test_without_rows_the_scores_are_the_retrievers_order_in_a_tensor_of_their_own(table, batch):
    candidates = propose(TableRetriever(table), batch, K)
    none = torch.empty(0, dtype=torch.int64)
    scores = candidates.reordered(none, none.view(0, K))
    assert scores.argsort(dim=1, descending=True).equal(candidates.order)
    assert scores.dtype == torch.float32 and scores.is_contiguous()
    before = candidates.order.clone()
    scores[:, 0] = -torch.inf  # as RecBole writes
    assert candidates.order.equal(before)


def test_a_small_catalogue_gives_no_padding_item_as_candidate(batch):
    candidates = propose(TableRetriever(torch.zeros(B, 4)), batch, K)
    assert candidates.items.tolist() == [[1, 2, 3]] * B


def test_a_retriever_in_half_precision_is_ordered_as_in_float32(table, batch):
    half = propose(TableRetriever(table.bfloat16()), batch, K)
    full = propose(TableRetriever(table.bfloat16().float()), batch, K)
    assert half.order.equal(full.order) and half.scores.equal(full.scores)


def test_scores_that_are_nan_are_an_error(table, batch):
    table[3, 7] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        propose(TableRetriever(table), batch, K)
