"""RecBole's sequential data set, in exact chronological order and with item text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from recbole.data.dataset import SequentialDataset
from recbole.utils import FeatureType

from recbole_llamarec.data.item_text import format_fields, format_item_text, item_texts
from recbole_llamarec.keys import shown
from recbole_llamarec.recbole_data_keys import DATA_RULES


class LlamaRecDataset(SequentialDataset):
    """``SequentialDataset`` whose users' items stand in the order of their exact timestamps.

    RecBole 1.2.1 casts timestamps to float32 before it sorts by them, which puts events of the same
    64 s (ml-100k) or 128 s (2018) into file order: the last item of many users is then not their
    last one. Here rows are sorted before the cast. Ties keep the order of the ``.inter`` file. The
    cast is monotone and RecBole's own sorts are stable, so they leave this order as it is.
    ``exact_chronology: False`` turns RecBole's own order back on.

    An item without text is dropped with its interactions before any k-core filter
    (``item_text_missing: drop``, the paper's preparation) or kept (``fallback``).
    """

    inter_feat: Any  # DataFrames while the data are prepared, Interactions afterwards
    item_feat: Any

    def __init__(self, config):
        with _naming_settings(config):
            super().__init__(config)

    def build(self):
        """RecBole's split into data sets of training, validation and test."""
        with _naming_settings(self.config):
            return super().build()

    def _data_filtering(self):
        if self.time_field not in self.inter_feat:
            raise ValueError(
                f"TIME_FIELD: {self.time_field!r} is not a loaded column of "
                f"{self.dataset_name}.inter (loaded: {list(self.inter_feat.columns)}). LlamaRec "
                "and LRURec need timestamps: name the column with TIME_FIELD and load it with "
                "load_col: {inter: [..., timestamp]}."
            )
        if self.config["item_text_format"]:
            self._check_item_fields()
            has_text = self._has_text()
            if self.config["item_text_missing"] == "drop":
                self._drop_items_without_text(has_text)
        if not self._is_exact:
            return super()._data_filtering()
        self.inter_feat["_line"] = np.arange(len(self.inter_feat))
        super()._data_filtering()
        # rm_dup_inter sorts with an unstable algorithm; ties need the file order
        self.inter_feat.sort_values("_line", inplace=True, ignore_index=True)
        del self.inter_feat["_line"]

    @property
    def _is_exact(self) -> bool:
        return self.config["exact_chronology"] is not False

    def _change_feat_format(self):
        if self._is_exact and self.benchmark_filename_list is None:
            self.inter_feat.sort_values(
                [self.uid_field, self.time_field], kind="stable", inplace=True, ignore_index=True
            )
        super()._change_feat_format()

    def item_texts(self, fallback: str | None = None) -> list[str]:
        """The text of every item by internal id; ``""`` for the padding item 0.

        Args:
            fallback: text of an item that has none, with ``{token}`` for its token.

        Returns:
            list of ``item_num`` texts.
        """
        template = self.config["item_text_format"]
        columns = {field: self._decoded_column(field) for field in format_fields(template)}
        tokens = self.field2id_token[self.iid_field]
        return ["", *item_texts(template, columns, tokens, fallback)[1:]]

    def _decoded_column(self, field: str) -> list[str]:
        """The text of one item field for every internal item id, ``""`` where missing."""
        tokens = self.field2id_token[field]
        rows = map(np.atleast_1d, self.item_feat[field])  # one id, or an array of ids, an item
        return [" ".join(str(tokens[int(i)]) for i in ids if i) for ids in rows]

    def _check_item_fields(self) -> None:
        template = self.config["item_text_format"]
        loaded = [] if self.item_feat is None else list(self.item_feat.columns)
        for field in format_fields(template):
            if field not in loaded:
                raise ValueError(
                    f"item_text_format: {template!r} reads the item field {field!r}, which is not "
                    f"loaded (loaded from {self.dataset_name}.item: {loaded}). Load it with "
                    f"load_col: {{item: [{self.iid_field}, {field}]}} beside what load_col already "
                    "names, or change the format."
                )
            if self.field2type[field] not in (FeatureType.TOKEN, FeatureType.TOKEN_SEQ):
                raise ValueError(
                    f"item_text_format: the item field {field!r} is of type "
                    f"{self.field2type[field].value!r}; item text is read from token and token_seq "
                    "fields. Declare it as one of them in the head line of the .item file."
                )

    def _has_text(self) -> np.ndarray:
        """Whether each row of the raw ``item_feat`` has text, as booleans ``[rows]``; some must."""
        template = self.config["item_text_format"]
        fields = format_fields(template)

        def raw(value) -> str:
            if isinstance(value, np.ndarray):
                return " ".join(value)
            return value if isinstance(value, str) else ""

        rows = zip(*(self.item_feat[field] for field in fields), strict=True)
        has_text = np.array(
            [
                format_item_text(template, dict(zip(fields, map(raw, row), strict=True))) != ""
                for row in rows
            ],
            dtype=bool,
        )
        if not has_text.any():
            raise ValueError(
                f"item_text_format: {template!r} gives no text for any of the "
                f"{len(self.item_feat)} items, since {fields[0]!r} is empty throughout. Name "
                "another field, or fill it in the .item file."
            )
        return has_text

    def _drop_items_without_text(self, has_text: np.ndarray) -> None:
        n_items, n_inters = len(self.item_feat), len(self.inter_feat)
        self.item_feat = self.item_feat[has_text].reset_index(drop=True)
        kept = self.inter_feat[self.iid_field].isin(self.item_feat[self.iid_field])
        self.inter_feat = self.inter_feat[kept].reset_index(drop=True)
        if n_items > len(self.item_feat) or n_inters > len(self.inter_feat):
            self.logger.info(
                f"item_text_missing: drop removed {n_items - len(self.item_feat)} items without "
                f"text, and {n_inters - len(self.inter_feat)} interactions with items without text"
            )


@contextmanager
def _naming_settings(config: Any) -> Iterator[None]:
    """Within, what RecBole cannot do with a data set names the settings that it was given for it.

    Raises:
        ValueError: for any error that does not name a key by itself.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise  # they name the file
    except Exception as error:  # whatever a column that is none, or no row that is left, comes to
        keys = (*DATA_RULES, "data_path")
        given = {key: config[key] for key in config.external_config_dict if key in keys}
        if not given or any(f"{key}:" in str(error) for key in (*keys, "item_text_format")):
            raise
        settings = "; ".join(f"{key}: {shown(value)}" for key, value in given.items())
        raise ValueError(
            f"RecBole cannot read the data set {config['dataset']!r} as these keys say "
            f"({type(error).__name__}: {error}). Compare them with its files: {settings}."
        ) from error
