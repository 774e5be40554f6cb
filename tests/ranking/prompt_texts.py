"""Templates, titles and tokenizer-breaking texts that the tests of prompts share."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from recbole_llamarec.ranking.prompt.template import PromptTemplate
from recbole_llamarec.ranking.verbalizer import default_labels

LABELS = default_labels(52)
N_ITEMS = 60
DEFAULT = PromptTemplate()
LABELS_BEFORE = {"history_item": "({number}) {title}", "candidate_item": "({label}) {title}"}
PAPER = PromptTemplate(  # the official code's: the answer stands directly behind a line break
    text="### Instruction:\n{instruction}\n\n### Input:\nUser history: {history}; \n "
    "Candidate pool: {candidates}\n\n### Response:\n",
    separator=" \n ",
    response="{label}",
    **LABELS_BEFORE,
)
BEFORE = PromptTemplate(  # labels before their titles, items told by them alone
    text="### Instruction: {instruction}\n\n"
    "### Input: User history: {history}; Candidate pool: {candidates}\n\n### Response:",
    separator=" ",
    response=" {label}",
    **LABELS_BEFORE,
)
TEMPLATES = [
    DEFAULT,
    PromptTemplate(
        instruction="Pick  {one}.",
        text="<|im_start|> user\n{instruction}\nSeen so far:\n{history}\nChoices :\n  {candidates}."
        "<|im_end|>\nAnswer:",
        history_item="{title} [{number}]",
        candidate_item="<{label}>  {title}!",
        separator="  |\n ",
        empty_history="",
    ),
    BEFORE,
    PromptTemplate(
        text="Watched: {history}\nNow {candidates}",
        history_item="{title}",
        candidate_item="{label}: {title}",
    ),
    PAPER,
]
TEMPLATE_NAMES = ["default", "chat", "before", "terse", "paper"]
TROUBLE = (
    "(B)|( C )|(1)|(12)|(a)|[B]|[7]|<D>E|B:|User history:|Candidate  pool :|### Response:|###|#|"
    "History :|Candidates:|Next: (|"
    "Seen so far:|<|</s>|<s>|<unk>|< s>|(1995)|\u2581|;|:|.|,|\n\n|\r\n|\t|\u2028|\xa0|\u3000|"
    "\u200b|\u0301|\x00|\x85|\x1c|\ud800|\udfff|🎬|👩\u200d👧|👍🏽|\xe9|e\u0301|'|\"|'s|007|1984|Toy"
)
PIECES = st.sampled_from([*TROUBLE.split("|"), "<|im_end|>", "<|endoftext|>"])
TITLE = st.lists(PIECES | st.text(max_size=6) | st.just(" "), max_size=8).map("".join)
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def catalogue(titles: list[str], n_items: int = N_ITEMS) -> list[str]:
    """A list of titles for all ids, with the given ones spread through plain ones."""
    plain = [f"Film {i} ({1950 + i})" for i in range(n_items + 1)]
    for i, title in enumerate(titles):
        plain[1 + i * 7 % n_items] = title
    return plain


@st.composite
def shown_items(draw):
    history = draw(st.lists(st.integers(1, N_ITEMS), max_size=30))
    n_candidates = draw(st.integers(2, 52))
    return history, draw(st.permutations(range(1, N_ITEMS + 1)))[:n_candidates]
