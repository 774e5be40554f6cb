"""Trains LlamaRec's two stages in one run and evaluates them side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from recbole.evaluator import Evaluator
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, early_stopping, init_seed
from tqdm import tqdm

from recbole_llamarec.evaluation import (
    CandidateScores,
    EvaluationPass,
    EvaluationReport,
    RecordingEvaluator,
    only_rank_metrics,
    rank_metrics,
    ranks_of,
    user_table,
)
from recbole_llamarec.fusion import Fusion, fit_fusion, fused
from recbole_llamarec.integration.configs import loader_like
from recbole_llamarec.ranking.adapter import adapter_state, load_adapter_state, save_adapter
from recbole_llamarec.ranking.likelihood import LikelihoodRanker
from recbole_llamarec.ranking.tuning import (
    choice_step,
    learning_rate_factor,
    sequence_step,
    tuning_step,
)
from recbole_llamarec.report.collect import collect
from recbole_llamarec.report.page import write_page
from recbole_llamarec.report.record import Journal, write_record
from recbole_llamarec.retrieval.retriever import load_retriever, train_retriever
from recbole_llamarec.run_log import RunLog
from recbole_llamarec.tuning_samples import TuningSamples


class LlamaRecTrainer(Trainer):
    """RecBole's trainer for LlamaRec: first the retriever, then the ranker's adapter.

    RecBole's own training keys (``epochs``, ``train_batch_size``, ``learner``, ``learning_rate``,
    ``weight_decay``, ``clip_grad_norm``, ``stopping_step``) are the ranker's; the retriever has its
    own under ``retriever_config``. ``stopping_step`` counts validations of the ranker.

    Attributes:
        report: of the last :meth:`evaluate`, ``None`` before.
        journal: curves and times, for the report as a page.
        writes_report: whether :meth:`evaluate` writes that page: after a :meth:`fit` that saved a
            checkpoint, but not where it was quiet, as RecBole's ``HyperTuning`` has it.
    """

    saved_model_file: str
    best_valid_score: float
    cur_step: int

    def __init__(self, config, model):
        super().__init__(config, model)
        self.settings = model.settings
        self.evaluator: Evaluator = RecordingEvaluator(config)
        self.skip_misses = self.settings.rerank_skip_misses and only_rank_metrics(config["metrics"])
        self.report: EvaluationReport | None = None
        self.run_log = RunLog(self.tensorboard, self.wandblogger)
        self.journal, self.writes_report = Journal(), False
        if self._is_distributed:  # each process named the file by its own clock
            names = [self.saved_model_file]
            dist.broadcast_object_list(names)
            self.saved_model_file = names[0]

    @property
    def _is_distributed(self) -> bool:
        return not self.config["single_spec"]

    def fit(
        self,
        train_data,
        valid_data=None,
        verbose=True,
        saved=True,
        show_progress=False,
        callback_fn=None,
    ):
        """Train both stages; arguments and result are those of RecBole's ``Trainer.fit``.

        ``callback_fn`` is called after each validation of the ranker, for one that is not tuned
        after its fusion is fitted, and without a ranker after each epoch of the retriever.

        The language model is loaded first, so that whatever is wrong with it, its labels or its
        adapter is reported before the retriever is trained.
        """
        self.eval_collector.data_collect(train_data)
        self.journal, self.writes_report = Journal(), saved and verbose
        if self.settings.has_ranker:
            with self.journal.timed("loading the language model"):
                self.model.ranker  # noqa: B018
        if self.settings.retriever_checkpoint:
            load_retriever(
                self.model.retriever, self.settings.retriever, self.settings.retriever_checkpoint
            )
        else:
            file = Path(self.saved_model_file).with_suffix(f".{self.settings.retriever}.pth")
            with self.journal.timed("training the retriever"):
                self.journal.retriever = train_retriever(
                    self.model.retriever_config,
                    self.model.retriever,
                    train_data,
                    valid_data,
                    file,
                    keep_file=saved,
                    show_progress=show_progress,
                    log_directory=self.tensorboard.log_dir,
                    seen=self.model.seen if self.settings.rerank_mask_seen else None,
                    callback_fn=None if self.settings.has_ranker else callback_fn,
                )
        if self.settings.has_ranker:
            with self.journal.timed("tuning the ranker"):
                self._tune(train_data, valid_data, verbose, show_progress, callback_fn)
            with self.journal.timed("label prior and fusion"):
                self._calibrate(train_data, valid_data, show_progress)
            if callback_fn and self.journal.validation and not self.journal.ranker.scores:
                callback_fn(0, self.best_valid_score)
        elif valid_data:
            self.best_valid_result = super().evaluate(valid_data, load_best_model=False)
            self.best_valid_score = calculate_valid_score(self.best_valid_result, self.valid_metric)
        self._add_hparam_to_tensorboard(self.best_valid_score)
        if saved:
            self._save_both(verbose)
        return self.best_valid_score, self.best_valid_result

    # --- the ranker ----------------------------------------------------------------------------

    def _tune(self, train_data, valid_data, verbose, show_progress, callback_fn) -> None:
        """Tune the adapter and keep its best state on validation."""
        # Dropout must not depend on whether the retriever was trained in this run or loaded.
        init_seed(self.config["seed"] + self.config["local_rank"], self.config["reproducibility"])
        model = self.model.ranker.model
        if self.settings.ranking_method == "generate" and self.epochs:
            self.logger.warning("ranking_method: generate is not tuned; it ranks as it is loaded.")
        optimizer = self._build_optimizer(params=[p for p in model.parameters() if p.requires_grad])
        samples = TuningSamples(self.model, train_data.dataset, self.config["seed"])
        is_tuned = self.settings.ranking_method != "generate"
        size = self.config["train_batch_size"]
        batches = samples.batches(self.epochs if is_tuned else 0, size)
        is_validated = valid_data and (batches or not self._fusion_validates)
        subset = self._subset(valid_data, self.settings.train_eval_rows) if is_validated else None
        if verbose:
            self.logger.info(
                f"Stage 2 of 2: tuning the ranker on {sum(map(len, batches))} samples in "
                f"{len(batches)} steps"
            )
        prompts = self.model.ranker.prompts
        shortened_before = prompts.n_shortened
        best_adapter, losses, start = None, [], time.time()
        options = {"desc": "Tune", "unit": "sample", "ncols": 100, "disable": not show_progress}
        with tqdm(total=sum(map(len, batches)), **options) as progress:
            nothing = np.empty(0, dtype=np.int64)  # step 0 validates, where there is no other step
            for step, rows in enumerate([nothing, *batches]):
                if step:
                    factor = learning_rate_factor(self.settings.train_schedule, step, len(batches))
                    for group in optimizer.param_groups:
                        group["lr"] = factor * self.config["learning_rate"]
                    loss = self._tuning_step(samples, rows, step, optimizer, progress.update)
                    losses.append(loss)
                    self.run_log.tuning_step(step, loss)
                    self.journal.ranker.losses[step] = loss
                    progress.set_postfix(loss=f"{losses[-1]:.4f}")
                if subset is None or not self._is_validation_step(step, len(batches)):
                    continue
                score, improved, stop = self._validate(subset, step, show_progress)
                self.journal.ranker.scores[step] = score
                if verbose:
                    mean = f"{np.mean(losses):.4f}" if losses else "-"
                    seconds = time.time() - start
                    self.logger.info(
                        f"ranker step {step} [time: {seconds:.2f}s, train loss: {mean}, "
                        f"valid_score: {score:.6f} on {len(subset.dataset)} rows]"
                    )
                if callback_fn:
                    callback_fn(step, score)
                losses = []
                if improved:
                    best_adapter = adapter_state(model)
                if stop:
                    break
        if verbose:
            prompts.report_shortened(since=shortened_before)
        if best_adapter is not None:
            load_adapter_state(model, best_adapter)

    def _tuning_step(
        self, samples: TuningSamples, rows: np.ndarray, step: int, optimizer, on_progress
    ) -> float:
        if self._is_distributed:  # a batch smaller than the processes is given to each whole
            share = rows[self.config["local_rank"] :: self.config["world_size"]]
            rows = share if len(rows) >= self.config["world_size"] else rows
        ranker, batch_tokens = self.model.ranker, self.settings.train_batch_tokens
        options = {
            "clip_norm": (self.clip_grad_norm or {}).get("max_norm"),
            "reduce_gradients": _average_over_processes if self._is_distributed else None,
            "on_progress": on_progress,
        }
        loss = self.settings.train_loss
        if loss == "titles":
            sequences = samples.histories_with_targets(rows)
            return sequence_step(ranker, sequences, optimizer, batch_tokens, **options)
        pools = samples.pools(rows, step)
        candidates = [candidates.tolist() for candidates, _ in pools]
        if isinstance(ranker, LikelihoodRanker):
            shown = samples.histories_with_evidence(rows, pools)
            targets = samples.choices(rows, pools)  # [B, K]
            return choice_step(
                ranker, shown, candidates, targets, optimizer, batch_tokens, **options
            )
        labels = [label for _, label in pools]
        batch = samples.histories(rows), candidates, labels
        return tuning_step(ranker, *batch, optimizer, batch_tokens, loss, **options)

    # --- what is fitted after tuning -----------------------------------------------------------

    def _calibrate(self, train_data, valid_data, show_progress: bool) -> None:
        """Measure the label prior and fit the fusion, as far as the settings ask for them."""
        if self.settings.ranking_method == "generate":
            return
        if self.settings.rerank_label_prior_rows:
            self._measure_label_prior(train_data.dataset, show_progress)
        if self.settings.rerank_fusion == "auto" and not valid_data:
            self.logger.warning(
                "rerank_fusion: auto needs validation data; the ranker's order stands alone."
            )
        elif self.settings.rerank_fusion == "auto":
            self._fit_fusion(valid_data, show_progress)

    def _measure_label_prior(self, dataset, show_progress: bool) -> None:
        """Estimate the label prior on training rows with random pools, and subtract it from now."""
        samples = TuningSamples(self.model, dataset, self.config["seed"])
        histories, pools = samples.for_label_prior()
        prior = self.model.ranker.measure_label_prior(histories, pools, show_progress)
        self.model.ranker.label_prior = prior
        labels = self.settings.verbalizer_labels
        self.logger.info(
            f"Label prior on {len(pools)} rows, subtracted: standard deviation {prior.std():.3f} "
            f"nats, highest {labels[int(prior.argmax())]} ({prior.max():+.3f}), lowest "
            f"{labels[int(prior.argmin())]} ({prior.min():+.3f})"
        )

    def _fit_fusion(self, valid_data, show_progress: bool) -> None:
        """Fit the ranker's weight on validation rows; the best validation result is then fused."""
        subset = self._subset(valid_data, self.settings.rerank_fusion_rows)
        self.model.fusion_weight, self.model.evidence_weight = None, 0.0
        with self.model.evaluating(
            rerank=True, skip_misses=True, show_progress=show_progress
        ) as noted:
            super().evaluate(subset, load_best_model=False)
        found = self._gathered(noted)
        stages = found["retriever"], found["ranker"], found["places"], found.get("evidence")
        fusion = fit_fusion(*stages)
        self.model.fusion_weight, self.journal.fusion = fusion.weight, fusion
        if fusion.evidence is not None:
            self.model.evidence_weight = fusion.evidence.weight
            self.model.evidence_weight_alone = fusion.evidence.without_ranker
        for line in fusion.summary().splitlines():
            self.logger.info(line)
        if not only_rank_metrics([self.valid_metric.split("@")[0]]):
            return
        results = self.journal.validation = self._results_by_stage(found, fusion)
        line = ", ".join(f"{k} {v[self.valid_metric.lower()]:.4f}" for k, v in results.items())
        self.logger.info(f"{self.valid_metric} on {len(found['ranks'])} validation rows: {line}")
        self.best_valid_result = {**(self.best_valid_result or {}), **results["fused"]}
        self.best_valid_score = calculate_valid_score(self.best_valid_result, self.valid_metric)

    def _results_by_stage(
        self, found: Mapping[str, np.ndarray], fusion: Fusion
    ) -> dict[str, dict[str, float]]:
        """Metrics over the rows of a pass in the order of each stage and of all."""
        orders = {"retriever": found["retriever"], "ranker": found["ranker"]}
        opinions, weights = [found["ranker"]], [fusion.weight]
        if fusion.evidence is not None:
            evidence = found["evidence"]
            alone = [fusion.evidence.without_ranker]
            orders["with evidence"] = fused(found["retriever"], [evidence], alone)
            opinions, weights = [evidence, *opinions], [fusion.evidence.weight, *weights]
        orders["fused"] = fused(found["retriever"], opinions, weights)
        results = {}
        for name, scores in orders.items():
            ranks = ranks_of(scores, found["places"])
            of_all = found["ranks"].copy()
            of_all[of_all <= self.settings.rerank_candidates] = ranks
            columns = rank_metrics(of_all, self.config["metrics"], self.config["topk"])
            results[name] = columns.mean().to_dict()
        return results

    def _gathered(self, noted) -> dict[str, np.ndarray]:
        """What a pass has noted of the rows that were ranked, of all processes together."""
        scores = CandidateScores.joined(noted.scores, self.settings.rerank_candidates)
        found = {
            "retriever": scores.retriever,
            "ranker": scores.ranker,
            "evidence": scores.evidence if self.settings.fuses_evidence else None,
            "places": torch.cat([*noted.places, torch.empty(0, dtype=torch.int64)]),
            "ranks": torch.cat(noted.ranks),
        }
        arrays = {name: values.numpy() for name, values in found.items() if values is not None}
        if not self._is_distributed:
            return arrays
        of_all: list = [None] * self.config["world_size"]
        dist.all_gather_object(of_all, arrays)
        return {name: np.concatenate([part[name] for part in of_all]) for name in arrays}

    @property
    def _fusion_validates(self) -> bool:
        """Whether fitting the fusion gives the result on validation, as far as it is asked for."""
        is_fitted = self.settings.rerank_fusion == "auto"
        can_be = self.settings.ranking_method != "generate"
        return is_fitted and can_be and only_rank_metrics(self.config["metrics"])

    def _is_validation_step(self, step: int, n_steps: int) -> bool:
        every = self.settings.train_eval_steps
        return step == n_steps or (every is not None and step > 0 and step % every == 0)

    def _subset(self, valid_data, n_rows: int | None):
        """A fixed random choice of validation rows, as a loader; ``None`` takes all."""
        dataset = valid_data.dataset
        order = np.random.default_rng(self.config["seed"]).permutation(len(dataset))
        rows = np.sort(order[:n_rows])
        subset = dataset.copy(dataset.inter_feat[torch.from_numpy(rows)])
        return loader_like(valid_data, self.config, subset)

    def _validate(self, subset, step: int, show_progress: bool) -> tuple[float, bool, bool]:
        """Validate the ranker: its score, whether it is the best so far, and whether to stop."""
        with self.model.evaluating(
            rerank=True, skip_misses=self.skip_misses, show_progress=show_progress
        ):
            result = super().evaluate(subset, load_best_model=False)
        score = calculate_valid_score(result, self.valid_metric)
        self.best_valid_score, self.cur_step, stop, improved = early_stopping(
            score,
            self.best_valid_score,
            self.cur_step,
            max_step=self.stopping_step,
            bigger=self.valid_metric_bigger,
        )
        if improved:
            self.best_valid_result = result
        self.run_log.validation(step, score, result)
        return score, improved, stop

    def _save_both(self, verbose: bool) -> None:
        """RecBole's one file, and the adapter beside it as a PEFT directory."""
        self._save_checkpoint(self.epochs - 1, verbose=verbose)
        if self.config["local_rank"] == 0 and self.settings.has_ranker:
            directory = Path(self.saved_model_file).with_suffix(".adapter")
            save_adapter(self.model.ranker.model, directory)
            if verbose:
                self.logger.info(f"Saving the adapter in PEFT's format: {directory}")
        if self._is_distributed:
            dist.barrier()

    # --- evaluation ----------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, eval_data, load_best_model=True, model_file=None, show_progress=False):
        """Evaluate the retriever alone, then LlamaRec; log the table; return LlamaRec's metrics.

        Arguments and result are those of RecBole's ``Trainer.evaluate``.
        """
        if not eval_data:
            return None
        options = {"skip_misses": self.skip_misses, "show_progress": show_progress}
        with (
            self.journal.timed("test of the retriever"),
            self.model.evaluating(rerank=False, **options) as first,
        ):
            retriever = super().evaluate(eval_data, load_best_model, model_file, show_progress)
        last = first
        ranks = {"retriever": torch.cat(first.ranks).numpy()}
        retrieved = torch.from_numpy(ranks["retriever"] <= self.settings.rerank_candidates)
        on_retrieved = self._over_rows(retrieved)
        llamarec, llamarec_on_retrieved = None, None
        if self.settings.has_ranker:
            with (
                self.journal.timed("test of LlamaRec"),
                self.model.evaluating(rerank=True, **options) as last,
            ):
                llamarec = super().evaluate(eval_data, False, None, show_progress)
            if self.settings.fuses_evidence:
                ranks["evidence"] = torch.cat(last.evidence_ranks).numpy()
            if self.model.fusion_weight:
                ranks["ranker"] = torch.cat(last.ranker_ranks).numpy()
            ranks["llamarec"] = torch.cat(last.ranks).numpy()
            llamarec_on_retrieved = self._over_rows(retrieved)
        self.report = EvaluationReport(
            retriever=retriever,
            llamarec=llamarec,
            retriever_on_retrieved=on_retrieved,
            llamarec_on_retrieved=llamarec_on_retrieved,
            users=self._user_table(
                eval_data.dataset, torch.cat(first.targets).numpy(), ranks, last
            ),
            n_candidates=self.settings.rerank_candidates,
            masks_seen=self.settings.rerank_mask_seen,
            retriever_name=self.settings.retriever,
        )
        self._log_report(self.report)
        self.run_log.report(self.report)
        self._save_users(self.report)
        self._save_report(self.report, eval_data, first, last)
        return retriever if llamarec is None else llamarec

    def _user_table(
        self,
        dataset,
        targets: np.ndarray,
        ranks: Mapping[str, np.ndarray],
        ranking: EvaluationPass,
    ):
        """Ranks and metrics of all rows, and what they depend on, of all processes together."""
        table = user_table(
            dataset.id2token(dataset.uid_field, targets[:, 0]),
            dataset.id2token(dataset.iid_field, targets[:, 1]),
            ranks,
            self.config["metrics"],
            self.config["topk"],
        )
        counts = self.model.item_counts
        table["history_length"] = [self.model.seen.of(user).size for user in targets[:, 0]]
        table["target_count"] = counts[targets[:, 1]]
        if ranking.shown:
            shown, ranked = torch.cat(ranking.shown).numpy(), torch.cat(ranking.is_ranked).numpy()
            for column, values in {
                "shown_first": shown[:, 0],
                "target_shown": shown[:, 1],
                "first_count": counts[shown[:, 2]],
            }.items():
                table.loc[ranked, column] = values
        if not self._is_distributed:
            return table
        parts: list = [None] * self.config["world_size"]
        dist.all_gather_object(parts, table)
        return pd.concat(parts, ignore_index=True)

    def _save_users(self, report: EvaluationReport) -> None:
        """Write the per-user metrics beside the checkpoint, where this run has saved one."""
        checkpoint = Path(self.saved_model_file)
        if self.config["local_rank"] == 0 and checkpoint.is_file():
            file = checkpoint.with_suffix(".users.csv")
            report.users.to_csv(file, index=False)
            self.logger.info(f"Saving the metrics of each user: {file}")

    def _save_report(
        self, report: EvaluationReport, eval_data, first: EvaluationPass, last: EvaluationPass
    ) -> None:
        """Write the run's record and its page beside the checkpoint, where this run saved one.

        Hours of training must not be lost to a page: checkpoint and table of users are written by
        now, and the caller is still to get the result. Whatever goes wrong here is therefore
        logged in full, as an error, and the run goes on.
        """
        checkpoint = Path(self.saved_model_file)
        if not self.writes_report or self.config["local_rank"] != 0 or not checkpoint.is_file():
            return
        try:
            record = collect(
                checkpoint, self.config, self.model, self.journal, report, eval_data, first, last
            )
            write_record(record, checkpoint.with_suffix(".report.json"))
            self.logger.info(f"Saving the report of this run: {write_page(checkpoint)}")
        except Exception:
            self.logger.exception(
                "The report of this run could not be written; the run itself is complete."
            )

    def _over_rows(self, rows: torch.Tensor) -> Mapping[str, float]:
        """Metrics of the last pass over some rows, of all processes together."""
        result = dict(self.evaluator.evaluate_rows(rows))
        if not self._is_distributed:
            return result
        parts: list = [None] * self.config["world_size"]
        dist.all_gather_object(parts, (int(rows.sum()), result))
        total = sum(count for count, _ in parts)
        names = next((list(metrics) for _, metrics in parts if metrics), [])
        return {
            name: sum(count * metrics[name] for count, metrics in parts if count) / total
            for name in names
        }

    def _log_report(self, report: EvaluationReport) -> None:
        self.logger.info("Result\n" + report.table())
        if report.llamarec is None:
            return
        if self.settings.ranking_method == "generate" and self.model.is_ranker_attached:
            self.logger.info(self.model.ranker.counts.summary())
        if f"llamarec_{self.valid_metric.lower()}" in report.users:
            self.logger.info(report.compared(self.valid_metric.lower()))
        if not self.model.is_ranker_attached:
            self.logger.warning("The ranker is not trained: LlamaRec's rows are the retriever's.")
        before = calculate_valid_score(report.retriever, self.valid_metric)
        after = calculate_valid_score(report.llamarec, self.valid_metric)
        if (after < before) if self.valid_metric_bigger else (after > before):
            self.logger.warning(
                f"LlamaRec's {self.valid_metric} ({after}) is worse than its retriever's "
                f"({before}): this ranker does not earn its compute. Tune it on more samples "
                "(train_max_samples), or use a larger language model (llm_name_or_path)."
            )


def _average_over_processes(gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
