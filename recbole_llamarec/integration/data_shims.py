"""Shims of RecBole's data sets for pandas 3, which copies on write."""

from __future__ import annotations

import builtins
import csv
import types
import warnings

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as dataset_module
import recbole.data.dataset.sequential_dataset as sequential_dataset_module
from recbole.utils import FeatureType

from recbole_llamarec.data.missing import PANDAS_MISSING


def read_atomic_file(path, *, usecols, **options) -> pd.DataFrame:
    """``pandas.read_csv`` for RecBole's atomic files, with sequence columns kept as written.

    Of RecBole's own models; data sets of this package are read by ``data/atomic_files.py``. Neither
    knows quoting, in which a quotation mark in a title would swallow lines.

    RecBole's chained ``fillna("", inplace=True)`` leaves NaN in empty sequences under copy-on-write
    and loading fails. Read as text, they are empty, and titles such as ``NA`` or ``None``, which
    pandas would take for missing, are kept.
    """
    missing = {name: PANDAS_MISSING for name in usecols if not name.endswith("_seq")}
    return pd.read_csv(
        path,
        usecols=usecols,
        na_values=missing,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        **options,
    )


def len_of_each(values):
    """``len``, but of each value of a Series: in pandas 3 ``Series.agg(len)`` counts the values."""
    if isinstance(values, pd.Series):
        return values.map(builtins.len)
    return builtins.len(values)


def fill_nan(self) -> None:
    """RecBole's ``Dataset._fill_nan`` without chained in-place calls (no effect in pandas 3).

    Without it the padding item's token features are the smallest int64 and its floats NaN.
    """
    for feat_name in self.feat_name_list:
        feat = getattr(self, feat_name)
        for field in feat:
            kind = self.field2type[field]
            if kind == FeatureType.TOKEN:
                feat[field] = feat[field].fillna(0)
            elif kind == FeatureType.FLOAT:
                feat[field] = feat[field].fillna(feat[field].mean())
            else:
                dtype = np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64
                empty = np.array([], dtype=dtype)
                feat[field] = feat[field].map(
                    lambda value, empty=empty: empty if isinstance(value, float) else value
                )


def install() -> None:
    """Install the shims; a second call changes nothing."""
    # RecBole's chained assignments are replaced here; its tensors never write to pandas' arrays.
    if hasattr(pd.errors, "ChainedAssignmentError"):
        warnings.filterwarnings("ignore", category=pd.errors.ChainedAssignmentError)
    warnings.filterwarnings("ignore", message=".*NumPy array is not writable", module="recbole")
    pandas_for_recbole = types.ModuleType("pandas")
    pandas_for_recbole.__dict__.update(pd.__dict__)
    pandas_for_recbole.read_csv = read_atomic_file  # type: ignore[attr-defined]
    dataset_module.pd = pandas_for_recbole
    dataset_module.len = len_of_each
    sequential_dataset_module.len = len_of_each
    dataset_module.Dataset._fill_nan = fill_nan
