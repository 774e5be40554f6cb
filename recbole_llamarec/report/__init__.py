"""The report of a run: one HTML file beside its checkpoint, that needs nothing but a browser.

    TestedRun -> collect: RunRecord -> LlamaRec-….report.json
    RunRecord and .users.csv -> figures, page.html -> LlamaRec-….html

The page is made from the two files alone, so that it can be made again without the model:
``python -m recbole_llamarec.report saved/LlamaRec-….pth``. The core knows no report:
:func:`install` hangs it onto the trainer. Plotly, Jinja and pydantic (the extra ``[report]``) are
imported when a report is written or read, not before.
"""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = 'pip install ".[report]"'
NEEDED = ("jinja2", "markupsafe", "plotly", "pydantic")


def is_available() -> bool:
    """Whether everything that a report needs is installed."""
    return all(find_spec(name) is not None for name in NEEDED)


def install() -> None:
    """Write the report of every saved run once it has been tested; a second call adds nothing."""
    from recbole_llamarec.report.write import write_report
    from recbole_llamarec.trainer import LlamaRecTrainer

    if write_report not in LlamaRecTrainer.after_test:
        LlamaRecTrainer.after_test.append(write_report)
