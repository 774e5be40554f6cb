"""From a run that has been tested to its record."""

from __future__ import annotations

from datetime import datetime

from recbole_llamarec.checksums import sha256_of
from recbole_llamarec.evaluation.table import StageResult
from recbole_llamarec.report.configuration import changed_settings, configuration
from recbole_llamarec.report.record import RunRecord
from recbole_llamarec.report.sample import labels_of, sample_users
from recbole_llamarec.trainer import TestedRun
from recbole_llamarec.version import __version__


def collect(run: TestedRun) -> RunRecord:
    """Put together what the report of a run shows.

    Args:
        run: that has been tested.
    """
    trainer, report, dataset = run.trainer, run.report, run.loader.dataset
    config, model, journal = trainer.config, trainer.model, trainer.journal
    return RunRecord(
        package_version=__version__,
        finished=f"{datetime.now():%Y-%m-%d %H:%M}",
        checkpoint=run.checkpoint.name,
        dataset=config["dataset"],
        counts={"users": dataset.user_num - 1, "items": dataset.item_num - 1},
        changed=changed_settings(config),
        configuration=configuration(config, model.retriever_config),
        n_candidates=report.n_candidates,
        masks_seen=report.masks_seen,
        skips_misses=trainer.skip_misses,
        fusion=model.fusion,
        stages=[StageResult(stage.name, dict(stage.metrics)) for stage in report.stages],
        validation=journal.validation,
        labels=labels_of(model),
        valid_metric=config["valid_metric"],
        valid_metric_bigger=config["valid_metric_bigger"],
        seconds=journal.seconds,
        retriever_curve=journal.retriever,
        ranker_curve=journal.ranker,
        sample=sample_users(model, run.loader, run.records),
        users_sha256=sha256_of(run.checkpoint.with_suffix(".users.csv")),
    )
