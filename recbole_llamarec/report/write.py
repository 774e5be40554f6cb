"""Writes the report of a run that has just been tested."""

from __future__ import annotations

import logging

from recbole_llamarec.report.collect import collect
from recbole_llamarec.report.page import write_page
from recbole_llamarec.report.record import write_record
from recbole_llamarec.trainer import TestedRun

logger = logging.getLogger(__name__)


def write_report(run: TestedRun) -> None:
    """Write a run's record and its page beside its checkpoint.

    Hours of training must not be lost to a page: checkpoint and table of users are written by now,
    and the caller is still to get the result. Whatever goes wrong here is therefore logged in
    full, as an error, and the run goes on.

    Args:
        run: that has been tested.
    """
    try:
        write_record(collect(run), run.checkpoint.with_suffix(".report.json"))
        logger.info(f"Saving the report of this run: {write_page(run.checkpoint)}")
    except Exception:
        logger.exception("The report of this run could not be written; the run itself is complete.")
