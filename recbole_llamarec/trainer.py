"""The phases of a run, in order: retriever, tuning, save, fusion, save, test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.trainer import Trainer
from recbole.utils import init_seed

from recbole_llamarec import distributed
from recbole_llamarec.adapters.of_run import save_with_card
from recbole_llamarec.data.seen import items_to_mask
from recbole_llamarec.evaluation.metrics import as_floats, only_rank_metrics
from recbole_llamarec.evaluation.passes import PassRecords
from recbole_llamarec.evaluation.table import EvaluationReport, TestedRun, evaluation_report
from recbole_llamarec.evaluation.validation import fit_on_validation, warn_of_hidden_targets
from recbole_llamarec.finite import naming_stage
from recbole_llamarec.integration.configs import random_rows
from recbole_llamarec.retrieval.retriever import load_retriever, train_retriever
from recbole_llamarec.scoring.fusion import Fusion
from recbole_llamarec.scoring.language_model import LanguageModel, language_model_of
from recbole_llamarec.tuning.budget import tuning_budget
from recbole_llamarec.tuning.curve import TrainingCurve
from recbole_llamarec.tuning.loop import TuningLoop, TuningProgress
from recbole_llamarec.tuning.plan import tuning_plan, warn_of_keys_without_effect
from recbole_llamarec.tuning.run_files import RunFiles
from recbole_llamarec.tuning.run_log import Journal, RunLog
from recbole_llamarec.tuning.samples import TuningSamples
from recbole_llamarec.tuning.state import result_settings


class LlamaRecTrainer(Trainer):
    """RecBole's trainer for LlamaRec: first the retriever, then the ranker's adapter.

    RecBole's own training keys (``epochs``, ``train_batch_size``, ``learner``, ``learning_rate``,
    ``weight_decay``, ``clip_grad_norm``, ``stopping_step``) are the ranker's; the retriever has its
    own under ``retriever_config``. ``stopping_step`` counts validations of the ranker. A run that
    saves checkpoints can be interrupted anywhere; the same run then goes on.

    Attributes:
        report: of the last :meth:`evaluate`, ``None`` before.
        journal: curves and times.
        after_test: called with every saved run that has been tested, such as a writer of reports.
    """

    after_test: ClassVar[list[Callable[[TestedRun], None]]] = []
    saved_model_file: str
    best_valid_score: float

    def __init__(self, config, model):
        super().__init__(config, model)
        self.settings = model.settings
        self.skip_misses = self.settings.rerank_skip_misses and only_rank_metrics(config["metrics"])
        self.report: EvaluationReport | None = None
        self.run_log = RunLog(self.tensorboard, self.wandblogger)
        self.journal = Journal()
        self.saved_model_file = distributed.from_first(self.saved_model_file)
        self._resume = self.settings.resume
        self._writes_report = False
        self._files = RunFiles(Path(self.saved_model_file))

    @property
    def language_model(self) -> LanguageModel | None:
        """The scorer that is tuned, if the run has one."""
        return language_model_of(self.model.scorers.values())

    def resume_checkpoint(self, resume_file) -> None:
        """Let :meth:`fit` go on with an interrupted run, as the key ``resume`` does."""
        self._resume = str(resume_file)

    @distributed.naming_lost_process()
    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """Train; arguments and result are those of RecBole's ``Trainer.fit``.

        ``callback_fn`` is called after each validation of the ranker, for one that is not tuned
        after its fusion is fitted, and without a ranker after each epoch of the retriever.

        The language model is loaded first, so that whatever is wrong with it, its labels or its
        adapter is reported before the retriever is trained.
        """
        self.eval_collector.data_collect(train_data)
        self.journal = Journal()
        self._writes_report = saved and verbose
        self._files = RunFiles(Path(self.saved_model_file))
        if (scorer := self.language_model) is not None:
            with self.journal.timed("loading the language model"):
                scorer.ranker  # noqa: B018
            warn_of_keys_without_effect(scorer.card, self.config)
        if saved:
            card = None if scorer is None else scorer.card
            settings = result_settings(self.config, train_data, valid_data, card=card)
            self._files.claim(settings, self.settings.save_every_minutes, self._resume)
            self.saved_model_file = str(self._files.checkpoint)
        with self._files.released_on_error():
            self._files.require_space(self.model)
            warn_of_hidden_targets(valid_data, self.settings.rerank_mask_seen)
            self._train_retriever(train_data, valid_data, saved, show_progress, callback_fn)
            if self.language_model is not None:
                with self.journal.timed("tuning the ranker"):
                    self._tune(train_data, valid_data, verbose, show_progress, callback_fn)
                if saved:
                    self._save_both(verbose, finished=False)
            with self.journal.timed("fusion"):
                self._fuse(valid_data, show_progress)
            if saved:
                self._save_both(verbose, finished=True)
        if callback_fn and self.journal.validation and not self.journal.ranker.scores:
            callback_fn(0, self.best_valid_score)
        self._add_hparam_to_tensorboard(self.best_valid_score)
        return self.best_valid_score, self.best_valid_result

    @contextmanager
    def _scoring(self, name: str, show_progress: bool, **options):
        """One pass of the model over evaluation data, whose scored batches are kept."""
        options = {"skip_misses": self.skip_misses} | options
        with ExitStack() as stack:
            stack.enter_context(naming_stage(name))
            if (language_model := self.language_model) is not None:
                log = self._files.score_log(name)
                stack.enter_context(language_model.logging_batches(log, show_progress))
            yield stack.enter_context(self.model.evaluating(rerank=True, **options))

    def _train_retriever(self, train_data, valid_data, saved, show_progress, callback_fn) -> None:
        name, retriever = self.settings.retriever, self.model.retriever
        if self.settings.retriever_checkpoint:
            load_retriever(retriever, name, self.settings.retriever_checkpoint)
            return
        file = Path(self.saved_model_file).with_suffix(f".{name}.pth")
        state = self._files.phases.get("retriever", {})
        if state.get("curve") and file.is_file():
            load_retriever(retriever, name, file, key="checkpoint_dir")
            self.journal.retriever = TrainingCurve.from_state(state["curve"])
            return

        put = self._files.put
        with self.journal.timed("training the retriever"):
            self.journal.retriever = train_retriever(
                self.model.retriever_config,
                retriever,
                train_data,
                valid_data,
                file,
                keep_file=saved,
                show_progress=show_progress,
                log_directory=self.tensorboard.log_dir,
                seen=items_to_mask(self.settings.rerank_mask_seen, self.model.chosen),
                callback_fn=callback_fn if self.language_model is None else None,
                saved=state.get("training"),
                save=(lambda own: put("retriever", {"training": own})) if saved else None,
            )
        put("retriever", {"curve": self.journal.retriever.state()})

    def _tune(self, train_data, valid_data, verbose, show_progress, callback_fn) -> None:
        """Tune the adapter and keep its best state on validation."""
        scorer: Any = self.language_model
        init_seed(self.config["seed"], self.config["reproducibility"])
        # The ranker alone is validated while it is tuned, or beside a weight that is given.
        weight, n_rows = self.settings.rerank_fusion, self.settings.train_eval_rows
        self.model.fusion = Fusion.from_setting(None if weight == "auto" else weight, [scorer.name])
        subset: Any = random_rows(valid_data, self.config, n_rows) if valid_data else None

        def validate(step: int, progress: TuningProgress) -> tuple[float, dict[str, float]]:
            with self._scoring(f"validation step {step}", show_progress):
                result = super(LlamaRecTrainer, self).evaluate(subset, load_best_model=False)
            score = float(result[self.valid_metric])
            self.run_log.validation(step, score, result)
            if verbose:
                loss = f"{np.mean(progress.losses):.4f}" if progress.losses else "-"
                rows = f"{score:.6f} on {len(subset.dataset)} rows"
                self.logger.info(f"ranker step {step} [train loss: {loss}, valid_score: {rows}]")
            if callback_fn:
                callback_fn(step, score)
            return score, as_floats(result)

        samples = TuningSamples(self.model, train_data.dataset, self.config["seed"])
        loop = TuningLoop(
            scorer,
            samples,
            tuning_plan(samples, scorer, self.settings, self.config, bool(valid_data)),
            self._build_optimizer(params=scorer.parameters()),
            tuning_budget(self.settings.train_batch_tokens, scorer.ranker.model),
            validate,
            on_step=self.run_log.tuning_step,
            save=lambda state: self._files.put("tuning", state),
            is_due=lambda: self._files.is_due,
        )
        if verbose:
            self.logger.info(f"Stage 2 of 2: tuning the ranker in {len(loop.plan.batches)} steps")
        progress = loop.run(self._files.phases.get("tuning"), show_progress)
        self.journal.ranker, self.journal.tuning_seconds = progress.curve, progress.seconds
        self.journal.tuning_samples = loop.plan.n_samples(progress.step)
        if progress.best_score is not None:
            self.best_valid_score = progress.best_score
            self.best_valid_result = progress.best_result

    def _fuse(self, valid_data, show_progress: bool) -> None:
        """Set the fusion: fitted on validation where it is asked for."""
        settings, names = self.settings, self.model.scorer_names
        self.model.fusion = Fusion.from_setting(settings.rerank_fusion, names)
        if not names and valid_data:
            self.best_valid_result = super().evaluate(valid_data, load_best_model=False)
            self.best_valid_score = self.best_valid_result[self.valid_metric]
        if not names or settings.rerank_fusion != "auto":
            return
        if not valid_data:
            self.logger.warning("rerank_fusion: auto needs validation data; nothing is fused.")
            self.model.fusion = Fusion.from_setting(None, names if self.language_model else [])
            return
        if state := self._files.phases.get("fusion"):
            self.model.fusion = Fusion.from_state(state["fusion"])
            self.journal.validation = state["validation"]
        else:
            self._fit_fusion(valid_data, show_progress)
        *_, self.best_valid_result = self.journal.validation.values()
        self.best_valid_score = self.best_valid_result[self.valid_metric]

    def _fit_fusion(self, valid_data, show_progress: bool) -> None:
        """Fit the weights on validation rows, and take the metrics of all stages on them."""
        subset = random_rows(valid_data, self.config, self.settings.rerank_fusion_rows)
        names = self.model.scorer_names
        with self._scoring("fusion", show_progress, skip_misses=True, all_scorers=True) as current:
            super().evaluate(subset, load_best_model=False)
        records = current.records(self.settings.rerank_candidates, names)
        every = records.of_all_processes(len(subset.dataset))
        fusion, validation = fit_on_validation(every, names, self.settings.retriever, self.config)
        self.model.fusion, self.journal.validation = fusion, validation
        if not only_rank_metrics(self.config["metrics"]):  # the others need every row's order
            *_, final = validation.values()
            with self._scoring("validation of the final order", show_progress):
                final |= as_floats(super().evaluate(subset, load_best_model=False))
        self._files.put("fusion", {"fusion": fusion.state(), "validation": validation})

    def _save_both(self, verbose: bool, finished: bool) -> None:
        """RecBole's one file, and the adapter beside it as a PEFT directory."""
        self._save_checkpoint(self.epochs - 1, verbose=verbose, finished=finished)
        if (scorer := self.language_model) and scorer.has_adapter and distributed.is_first():
            directory = Path(self.saved_model_file).with_suffix(".adapter")
            save_with_card(scorer, self.journal, self.config, directory)
            if verbose:
                self.logger.info(f"Saving the adapter in PEFT's format: {directory}")
        distributed.barrier()

    @torch.no_grad()
    @distributed.naming_lost_process()
    @naming_stage("test")
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Evaluate every stage, log the table, return the metrics of the final order.

        Arguments and result are those of RecBole's ``Trainer.evaluate``.
        """
        if not eval_data:
            return None
        timed, names = self.journal.timed, self.model.scorer_names
        with timed("test of the retriever"), self.model.evaluating(rerank=False) as current:
            retriever = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        final = retriever
        if names:
            with (
                self._files.released_on_error(),
                timed("test of all stages"),
                self._scoring("test", show_progress, all_scorers=True) as current,
            ):
                final = super().evaluate(eval_data, False, None, show_progress)
        own = current.records(self.settings.rerank_candidates, names)
        every = own.of_all_processes(len(dataset := eval_data.dataset))
        self.report = evaluation_report(self.model, every, dataset, self.config, retriever, final)
        for line in self.report.lines(self.valid_metric):
            self.logger.info(line)
        for warning in self.report.warnings(self.valid_metric, self.valid_metric_bigger):
            self.logger.warning(warning)
        self.run_log.report(self.report)
        self._write(self.report, own, eval_data)
        self.complete()
        return final

    def complete(self) -> None:
        """Delete what an interrupted run goes on from; nothing is left to be done."""
        self._files.remove()

    def _write(self, report: EvaluationReport, records: PassRecords, eval_data) -> None:
        """Write the users' table beside the checkpoint, where this run has saved one."""
        if (file := self._files.write_users(report.users)) is None:
            return
        self.logger.info(f"Saving the metrics of each user: {file}")
        run = TestedRun(self._files.checkpoint, self, report, records, eval_data)
        for write in self.after_test if self._writes_report else ():
            write(run)
