"""A run whose titles, users and settings are full of markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import checkpoint_of, tiny_settings

from recbole_llamarec import report

report.install()  # at import, so that it is there before the first run of the session

MARKUP = '</script><script>window.hurt=1</script> & "x" <img src=x onerror="window.hurt=1">\u2028'


@pytest.fixture(scope="session")
def hostile(tmp_path_factory, tiny_llama) -> Path:
    """Checkpoint of a run with fusion in which every text that a user can choose is markup."""
    from recbole.quick_start import run_recbole

    root = tmp_path_factory.mktemp("hostile")
    settings = tiny_settings(root, tiny_llama)
    items, users = (root / "data" / "tiny" / f"tiny.{kind}" for kind in ("item", "inter"))
    head, *lines = items.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    rows = [f"{item}\t{title} {MARKUP}\t{year}" for item, title, year in rows]
    items.write_text("\n".join([head, *rows]) + "\n")
    head, *lines = users.read_text().splitlines()
    users.write_text("\n".join([head, *(f"<b>{line}" for line in lines)]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("sys.argv", ["test"])
        run_recbole(
            config_dict=settings
            | {"rerank_fusion": 0.5, "train_eval_steps": 1, "likelihood_heading": MARKUP}
        )
    return checkpoint_of(root / "saved")
