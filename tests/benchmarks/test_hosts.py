"""One run on two hosts, and one of them killed, in small."""

from __future__ import annotations

import pytest
from hosts import METRIC, main


def test_metrics_are_read_from_either_form_of_a_log():
    line = "OrderedDict([('recall@5', np.float64(0.6154)), ('mrr@10', 0.4)])"
    assert METRIC.findall(line) == [("recall@5", "0.6154"), ("mrr@10", "0.4")]


@pytest.mark.slow
def test_the_run_goes_on_behind_a_killed_host(capsys):
    """In one phase of the three, so that it takes a minute."""
    with pytest.raises(SystemExit) as ended:
        main(["--phases", "tuning"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and text.rstrip().endswith("no findings")
    assert "| users" in text and "has lost the connection to another one (rank 1)" in text
