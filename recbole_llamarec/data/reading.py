"""RecBole's sequential data set, read from atomic files as they are written, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureSource, FeatureType

from recbole_llamarec.checksums import sha256_of
from recbole_llamarec.data.atomic_files import AtomicFile, DataSetError, read_atomic_file
from recbole_llamarec.data.ready_made import check_histories, keep_in_histories, padding_in
from recbole_llamarec.data.times import times_of
from recbole_llamarec.keys import shown
from recbole_llamarec.recbole_data_keys import DATA_RULES
from recbole_llamarec.version import __version__


class AtomicDataset(SequentialDataset):
    """``SequentialDataset`` that names file and line, or key, of what it cannot read.

    Fields are text as written (RecBole reads them as csv), times are numbers or dates, and lists of
    ready-made splits hold items alone.

    Attributes:
        file_digests: by name, the SHA-256 of each file that was read.
        version: of this package, that has read them.
        item_id_list_field: column of the histories.
    """

    inter_feat: Any  # DataFrames while the data are prepared, Interactions afterwards
    item_feat: Any
    file_size_list: list[int]  # interactions in each part of a ready-made split
    file_digests: dict[str, str]
    item_id_list_field: str

    def __init__(self, config):
        with _naming_settings(config):
            super().__init__(config)

    def build(self):
        """RecBole's split into data sets of training, validation and test."""
        with _naming_settings(self.config):
            return super().build()

    # --- reading -------------------------------------------------------------------------------

    def _get_field_from_config(self):
        super()._get_field_from_config()
        # RecBole names the attribute after the field, and reads it by this name all the same
        self.item_id_list_field = f"{self.iid_field}{self.config['LIST_SUFFIX']}"
        self.file_digests, self.version = {}, __version__
        self._item_columns: dict[str, dict[str, str]] = {}  # by field, each item's text

    def _load_feat(self, filepath, source):
        """RecBole's reading of an atomic file, without csv's quoting and with lines in errors."""
        load_col, unload_col = self._get_load_and_unload_col(source)
        if load_col == set():
            return None
        file = read_atomic_file(
            Path(filepath),
            self.config["field_separator"],
            self.config["encoding"],
            lambda field: (
                (load_col is None or field in load_col) and field not in (unload_col or ())
            ),
        )
        self.file_digests[file.path.name] = sha256_of(file.path)
        if not file.columns:
            self.logger.warning(f"No columns has been loaded from [{source}]")
            return None
        frame = pd.DataFrame({field: self._column(file, field, source) for field in file.columns})
        if frame.empty:
            raise DataSetError(f"{file.path} has no rows behind its head line.")
        if source in (FeatureSource.USER, FeatureSource.ITEM):
            return self._one_row_an_id(frame, file, source)
        return frame

    def _column(self, file: AtomicFile, field: str, source: Any):
        """One column's values, with its properties noted as RecBole does."""
        kind, separator = FeatureType(file.types[field]), self.config["seq_separator"]
        length, values = 1, None
        if field in (self.uid_field, self.iid_field) and kind is not FeatureType.TOKEN:
            raise DataSetError(
                f"{self._key_of(field)}: {field!r} is of type {kind.value} in {file.path}. Ids are "
                f"tokens: write {field}:token in the head line."
            )
        if field == self.time_field and source is FeatureSource.INTERACTION:
            kind, values = FeatureType.FLOAT, times_of(file, field)
        elif kind is FeatureType.TOKEN:
            values = file.tokens(field)
        elif kind is FeatureType.FLOAT:
            values = file.numbers(field)
        else:
            is_token = kind is FeatureType.TOKEN_SEQ
            read = file.token_lists if is_token else file.number_lists
            values = pd.Series(read(field, separator), dtype=object)
            longest = (self.config["seq_len"] or {}).get(field)
            if longest is not None:
                values = values.map(lambda row: row[:longest])
            length = max(map(len, values), default=0)
        if source != "link":
            self.field2source[field], self.field2type[field] = source, kind
            self.field2seqlen[field] = length
            if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                self.field2bucketnum[field] = 2
        return values

    def _one_row_an_id(self, frame: pd.DataFrame, file: AtomicFile, source: Any) -> pd.DataFrame:
        """A ``.user`` or ``.item`` file's rows: the first of each id, none without one."""
        field = self.uid_field if source is FeatureSource.USER else self.iid_field
        if field not in frame:
            raise DataSetError(
                f"{file.path}: {field!r}, the column of ids by {self._key_of(field)}, is not "
                f"loaded (it has {', '.join(file.types)}). Name its column by the key, and load it "
                "with load_col."
            )
        has_id = frame[field].notna()
        is_first = ~frame[field].duplicated()
        if not has_id.all():
            self.logger.warning(f"{file.path}: {(~has_id).sum()} rows without {field} are left out")
        if (doubled := frame[field][has_id & ~is_first]).size:
            self.logger.warning(
                f"{file.path}: {doubled.size} rows repeat an id of a row before, such as "
                f"{doubled.iloc[0]!r}, and are left out"
            )
        rows = np.flatnonzero(has_id & is_first)
        for name in self._text_fields() if source is FeatureSource.ITEM else ():
            if cells := file.columns.get(name):
                self._item_columns[name] = {frame[field][row]: cells[row] for row in rows}
        return frame[has_id & is_first].reset_index(drop=True)

    def _text_fields(self) -> tuple[str, ...]:
        """Fields of ``.item`` whose text is kept as written."""
        return ()

    def _key_of(self, field: str) -> str:
        return "USER_ID_FIELD" if field == self.uid_field else "ITEM_ID_FIELD"

    # --- checks --------------------------------------------------------------------------------

    def _data_processing(self):
        self._check_ids()
        is_ready_made = self.benchmark_filename_list is not None
        if is_ready_made:
            self._prepare_histories()
        self._prepare()
        if is_ready_made:
            self._drop_rows_without_history()
        super()._data_processing()

    def _prepare(self) -> None:
        """What comes before RecBole's own filters, which ready-made splits do without."""
        self._check_rows_match()

    def _keep_interactions(self, kept: Any) -> None:
        """Leave out interactions; of a ready-made split, each from its part."""
        kept = np.asarray(kept, dtype=bool)
        if self.benchmark_filename_list is not None:
            bounds = np.cumsum([0, *self.file_size_list])
            self.file_size_list = [int(kept[a:b].sum()) for a, b in pairwise(bounds)]
        self.inter_feat = self.inter_feat[kept].reset_index(drop=True)

    def _check_ids(self) -> None:
        """Interactions have users and items; those without are left out."""
        files = self._inter_files
        for field in (self.uid_field, self.iid_field):
            if field not in self.inter_feat:
                raise DataSetError(
                    f"{self._key_of(field)}: {field!r} is no loaded column of {files} (loaded: "
                    f"{', '.join(self.inter_feat.columns)}). Name its column by the key, and load "
                    f"it with load_col: {{inter: [..., {field}]}}."
                )
        has_ids = self.inter_feat[[self.uid_field, self.iid_field]].notna().all(axis=1)
        if not has_ids.all():
            self.logger.warning(
                f"{files}: {(~has_ids).sum()} interactions without {self.uid_field} or "
                f"{self.iid_field} are left out"
            )
            self._keep_interactions(has_ids)

    @property
    def _inter_files(self) -> str:
        return ", ".join(name for name in self.file_digests if name.endswith(".inter"))

    def _prepare_histories(self) -> None:
        """A ready-made split's histories are items, without what fills up the lists."""
        loaded = {field: self.field2type[field].value for field in self.inter_feat}
        check_histories(
            self._inter_files.split(", "),
            self.item_id_list_field,
            loaded,
            self.config["alias_of_item_id"],
        )
        items = set(self.inter_feat[self.iid_field])
        if self.item_feat is not None:
            items.update(self.item_feat[self.iid_field])
        padding = padding_in(items)
        self._keep_in_histories(lambda flat: ~flat.isin(padding))
        longest = self.inter_feat[self.item_id_list_field].map(len).max()
        if longest > self.max_item_list_len:  # positions of many retrievers end there
            raise DataSetError(
                f"MAX_ITEM_LIST_LENGTH: {self.max_item_list_len} is less than the longest history "
                f"in {self._inter_files}, which has {longest} items. Set it to {longest}, or "
                "shorten the histories."
            )

    def _keep_in_histories(self, is_kept) -> int:
        field, suffix = self.item_id_list_field, self.config["LIST_SUFFIX"]
        n_removed = keep_in_histories(self.inter_feat, field, suffix, is_kept)
        for name in self.inter_feat if n_removed else ():
            if self.field2type[name] in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                self.field2seqlen[name] = int(self.inter_feat[name].map(len).max())
        return n_removed

    def _drop_rows_without_history(self) -> None:
        has_history = self.inter_feat[self.item_id_list_field].map(len) > 0
        if not has_history.all():
            self.logger.warning(
                f"{self._inter_files}: {(~has_history).sum()} rows whose history is empty are left "
                "out"
            )
            self._keep_interactions(has_history)
        # two parts may be one file
        for name, size in zip(self.benchmark_filename_list, self.file_size_list, strict=True):
            if not size:
                file = f"{self.dataset_name}.{name}.inter"
                raise DataSetError(f"{file}: no row with a history and an item is left.")

    def _items_of_interactions(self) -> pd.Series:
        """Ids of the items that interactions, or a ready-made split's histories, have."""
        parts = [self.inter_feat[self.iid_field]]
        if self.benchmark_filename_list is not None:
            parts.append(
                pd.Series(np.concatenate(self.inter_feat[self.item_id_list_field].tolist()))
            )
        return pd.Series(pd.concat(parts, ignore_index=True).unique(), dtype=object)

    def _check_rows_match(self) -> None:
        """Some ids of ``.inter`` stand in ``.item``; in ``.user``, where RecBole filters by it."""
        checks = [(self.item_feat, self.iid_field, self._items_of_interactions())]
        if self.config["filter_inter_by_user_or_item"]:
            users = self.inter_feat[self.uid_field]
            checks.append((getattr(self, "user_feat", None), self.uid_field, users))
        for feat, field, ids in checks:
            if feat is None or ids.isin(feat[field]).any():
                continue
            kind = self.field2source[field].value.removesuffix("_id")
            raise DataSetError(
                f"No {kind} of the interactions has a row in {self.dataset_name}.{kind}: "
                f"{self._inter_files} has ids such as {ids.iloc[0]!r}, {self.dataset_name}.{kind} "
                f"such as {feat[field].iloc[0]!r}. Write them alike; ids are compared as text."
            )


@contextmanager
def _naming_settings(config: Any) -> Iterator[None]:
    """Within, what RecBole cannot do with a data set names the settings that it was given for it.

    Raises:
        ValueError: for any error that does not name a key by itself.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, DataSetError):
        raise  # they name the file
    except Exception as error:  # whatever a column that is none, or no row that is left, comes to
        names = {*DATA_RULES, "data_path"} & config.external_config_dict.keys()
        given = {name: config[name] for name in sorted(names)}
        if not given or any(f"{key}:" in str(error) for key in (*DATA_RULES, "item_text_format")):
            raise
        settings = "; ".join(f"{key}: {shown(value)}" for key, value in given.items())
        raise ValueError(
            f"RecBole cannot read the data set {config['dataset']!r} as these keys say "
            f"({type(error).__name__}: {error}). Compare them with its files: {settings}."
        ) from error
