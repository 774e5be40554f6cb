"""What the evidence is worth without a language model: counts of followers beside the retriever.

    python benchmarks/evidence.py ml-latest-small --data dataset --retriever LRURec.pth

Beside LlamaRec's own figures (suites/ranker.yaml) this tells how much of its evidence the language
model reads. A candidate's score is log(0.001 + sum over the last evidence_items items of the share
of their followers that it is).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from scipy.stats import ttest_rel
from tabulate import tabulate

from recbole_llamarec.evaluation import rank_metrics, ranks_of
from recbole_llamarec.fusion import fit_fusion, fused
from recbole_llamarec.llamarec import LlamaRec, histories_of
from recbole_llamarec.retrieval.retriever import load_retriever

METRICS, TOPK = ["NDCG", "Recall"], [5, 10]
BATCH = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the weight on validation, and print the test metrics with and without the evidence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a data set with a property file, such as ml-100k")
    parser.add_argument("--data", help="RecBole's data_path; its own data set if left out")
    parser.add_argument("--retriever", type=Path, required=True, help="checkpoint of an LRURec")
    parser.add_argument("--evidence_items", type=int, default=5)
    parser.add_argument("--config_files", nargs="*", help="property files")
    options = parser.parse_args(arguments)
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    settings = {"ranking_method": "likelihood", "evidence_items": options.evidence_items}
    if options.data:
        settings["data_path"] = options.data
    files = options.config_files
    config = Config("LlamaRec", options.dataset, config_file_list=files, config_dict=settings)
    train, valid, test = data_preparation(config, create_dataset(config))
    model = LlamaRec(config, train.dataset).to(config["device"]).eval()
    load_retriever(model.retriever, "LRURec", options.retriever)
    by_retriever, by_counts, places, _ = scored(model, valid.dataset)
    hits = places >= 0
    fusion = fit_fusion(by_retriever[hits], by_counts[hits], places[hits])
    print(fusion.summary().replace("the ranker", "the evidence"))
    by_retriever, by_counts, places, ranks = scored(model, test.dataset)
    found = {"LRURec": ranks}
    hits = places >= 0
    for name, scores in {
        "evidence alone": by_counts,
        "LRURec and evidence": fused(by_retriever, by_counts, fusion.weight),
    }.items():
        found[name] = ranks.copy()
        found[name][hits] = ranks_of(scores[hits], places[hits])
    rows = {name: rank_metrics(of, METRICS, TOPK) for name, of in found.items()}
    table = [[name, *metrics.mean()] for name, metrics in rows.items()]
    head = ["", *rows["LRURec"].columns]
    print(tabulate(table, head, tablefmt="github", floatfmt=".4f"))
    changed = [rows[name]["ndcg@10"] for name in ("LRURec and evidence", "LRURec")]
    print(f"ndcg@10, paired t-test over {len(ranks)} rows: p = {ttest_rel(*changed).pvalue:.2g}")


@torch.no_grad()
def scored(model: LlamaRec, dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both opinions on each row's candidates.

    Returns:
        the retriever's scores and the evidence's, ``[rows, K]``; the target's place among the
        candidates, -1 where it is none of them; its rank by the retriever, ``[rows]`` both.
    """
    parts = [*_batches(model, dataset)]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _batches(model: LlamaRec, dataset) -> Iterator[tuple[np.ndarray, ...]]:
    neighbours, n_candidates = model.neighbours, model.settings.rerank_candidates
    for start in range(0, len(dataset), BATCH):
        rows = dataset.inter_feat[torch.arange(start, min(start + BATCH, len(dataset)))]
        order, scores = model.retrieve_with_scores(rows, model.seen)  # [B, N] both
        candidates = order[:, :n_candidates]  # [B, K]
        histories = histories_of(
            rows[model.ITEM_SEQ], rows[model.ITEM_SEQ_LEN], torch.arange(len(rows))
        )
        counts = np.stack(
            [
                neighbours.summed_shares(history, pool)
                for history, pool in zip(histories, candidates.numpy(), strict=True)
            ]
        )  # [B, K]
        is_target = order == rows[model.ITEM_ID][:, None]  # [B, N]
        ranks = is_target.int().argmax(1).numpy() + 1
        places = np.where(ranks <= n_candidates, ranks - 1, -1)
        yield scores.gather(1, candidates).numpy(), np.log(counts), places, ranks


if __name__ == "__main__":
    main()
