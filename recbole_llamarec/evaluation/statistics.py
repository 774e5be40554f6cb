"""Paired tests over users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import ttest_rel


def paired_test(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean difference of two metrics of the same users, and the two-sided paired t-test's p.

    p is 1 where no user differs.
    """
    differences = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if not differences.any():
        return 0.0, 1.0
    return float(differences.mean()), float(ttest_rel(after, before).pvalue)
