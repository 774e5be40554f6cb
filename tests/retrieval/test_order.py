"""The retriever's order of all items against plain sorting."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_llamarec.data.seen import SeenItems, seen_mask
from recbole_llamarec.retrieval.candidates import ranked_items, scores_from_order, top_candidates


def plainly_ranked(scores: list[float], last: list[bool]) -> list[int]:
    items = sorted(range(1, len(scores)), key=lambda item: (last[item], -scores[item], item))
    return [*items, 0]


@pytest.mark.parametrize("n_items", [2, 3, 64, 65, 1000])
def test_order_is_that_of_plain_sorting(n_items):
    generator = torch.Generator().manual_seed(n_items)
    scores = torch.randn(40, n_items, generator=generator)
    scores[:20] = scores[:20].round()  # ties, with 0.0 beside -0.0
    scores[5:10] *= 1e30
    scores[10:15] *= 1e-42  # denormal
    scores[15, ::2] = -torch.inf
    scores[16, ::3] = torch.inf
    scores[:, 0] = 1e38  # padding stands last whatever its score
    last = torch.rand(40, n_items, generator=generator) < 0.3
    none = torch.zeros_like(last)
    for marked in (last, none):
        order = ranked_items(scores.clone(), marked)
        rows = zip(scores.tolist(), marked.tolist(), strict=True)
        assert order.tolist() == [plainly_ranked(*row) for row in rows]
        for k in (1, n_items // 2, n_items):
            assert ranked_items(scores.clone(), marked, k).equal(order[:, :k])
        assert scores_from_order(order).argsort(1, descending=True).equal(order)


def test_order_of_half_precision_scores():
    scores = torch.tensor([[0.0, 1.0, 3.0, -2.0]])
    assert ranked_items(scores.bfloat16()).tolist() == [[2, 1, 3, 0]]


class TableRetriever:
    """Scores by the user alone, and notes how many scores it gave at a time."""

    USER_ID, ITEM_SEQ, device = "user_id", "item_id_list", torch.device("cpu")

    def __init__(self, table: torch.Tensor) -> None:
        self.table, self.n_items = table, table.shape[1]
        self.sizes: list[int] = []

    def eval(self) -> None:
        pass

    def full_sort_predict(self, rows: Interaction) -> torch.Tensor:
        self.sizes.append(len(rows) * self.n_items)
        return self.table[rows["user_id"]].flatten()


@pytest.mark.parametrize("masks", [False, True])
def test_top_candidates_begin_the_retrievers_order_within_a_budget_of_scores(masks):
    generator = torch.Generator().manual_seed(1)
    retriever = TableRetriever(torch.randn(30, 50, generator=generator))
    users = torch.randperm(30, generator=generator)
    histories = torch.randint(0, 50, (30, 6), generator=generator)
    rows = Interaction({"user_id": users, "item_id_list": histories})
    pairs = torch.randint(1, 50, (2, 90), generator=generator).numpy()
    seen = SeenItems.from_histories([pairs[1][pairs[0] % 30 == user] for user in range(30)])
    last = seen_mask(users, histories, seen, 50) if masks else None
    expected = ranked_items(retriever.table[users], last)[:, :7]
    found = top_candidates(retriever, rows, 7, seen if masks else None, max_scores=299)
    assert found.equal(expected)
    assert max(retriever.sizes) == 250 and len(retriever.sizes) == 6
    assert top_candidates(retriever, rows[:0], 7).shape == (0, 7)
