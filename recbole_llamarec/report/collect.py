"""From a run that has been tested to its record."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from recbole_llamarec.evaluation import EvaluationPass, EvaluationReport
from recbole_llamarec.llamarec import LlamaRec
from recbole_llamarec.report.configuration import changed_settings, configuration
from recbole_llamarec.report.record import Journal, RunRecord
from recbole_llamarec.report.sample import sample_users
from recbole_llamarec.version import __version__

METRICS = ("retriever", "llamarec", "retriever_on_retrieved", "llamarec_on_retrieved")


def collect(
    checkpoint: Path,
    config,
    model: LlamaRec,
    journal: Journal,
    report: EvaluationReport,
    loader,
    first: EvaluationPass,
    last: EvaluationPass,
) -> RunRecord:
    """Put together what the report of a run shows.

    Args:
        checkpoint: of the run.
        config: the run's ``Config``.
        model: as it was tested.
        journal: the trainer's.
        report: of the test.
        loader: test data of this process.
        first, last: the test's passes, see :func:`~recbole_llamarec.report.sample.sample_users`.
    """
    settings, dataset = model.settings, loader.dataset
    metrics = {name: getattr(report, name) for name in METRICS}
    return RunRecord(
        package_version=__version__,
        finished=f"{datetime.now():%Y-%m-%d %H:%M}",
        checkpoint=checkpoint.name,
        dataset=config["dataset"],
        counts={"users": dataset.user_num - 1, "items": dataset.item_num - 1},
        changed=changed_settings(config),
        configuration=configuration(config, model.retriever_config),
        retriever_name=settings.retriever,
        ranking_method=settings.ranking_method,
        n_candidates=settings.rerank_candidates,
        labels=list(settings.verbalizer_labels),
        n_permutations=settings.rerank_permutations,
        masks_seen=settings.rerank_mask_seen,
        skips_misses=last.skip_misses,
        fusion_weight=model.fusion_weight,
        evidence_weight=model.evidence_weight,
        fusion=journal.fusion,
        valid_metric=config["valid_metric"],
        valid_metric_bigger=config["valid_metric_bigger"],
        seconds=journal.seconds,
        retriever_curve=journal.retriever,
        ranker_curve=journal.ranker,
        metrics={
            name: dict(found) if found is not None else None for name, found in metrics.items()
        },
        sample=sample_users(model, loader, first, last),
    )
