"""RecBole's sequential data set, in exact chronological order and with item text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from recbole_llamarec.data.atomic_files import DataSetError
from recbole_llamarec.data.chronology import CHOSEN_BEFORE, ChoiceRows, Chronology
from recbole_llamarec.data.item_text import format_fields, item_texts
from recbole_llamarec.data.reading import AtomicDataset
from recbole_llamarec.data.seen import SeenItems


class LlamaRecDataset(AtomicDataset):
    """``SequentialDataset`` whose users' items stand in the order of their exact timestamps.

    RecBole 1.2.1 casts timestamps to float32 before it sorts by them, which puts events of the same
    64 s (ml-100k) or 128 s (2018) into file order: the last item of many users is then not their
    last one. Here rows are sorted before the cast. Ties keep the order of the ``.inter`` file. The
    cast is monotone and RecBole's own sorts are stable, so they leave this order as it is.
    ``exact_chronology: False`` turns RecBole's own order back on.

    An item without text is dropped with its interactions before any k-core filter
    (``item_text_missing: drop``, the paper's preparation) or kept (``fallback``).
    """

    # What each user has chosen in all parts; how much of it before a row, the row itself knows.
    chosen: SeenItems

    def _text_fields(self) -> tuple[str, ...]:
        template = self.config["item_text_format"]
        return format_fields(template) if template else ()

    def _prepare(self) -> None:
        if self.config["item_text_format"]:
            self._check_item_fields()
        self._check_rows_match()
        if self.config["item_text_format"]:
            self._prepare_items()

    def _data_filtering(self):
        if self.time_field not in self.inter_feat:
            raise ValueError(
                f"TIME_FIELD: {self.time_field!r} is not a loaded column of "
                f"{self.dataset_name}.inter (loaded: {list(self.inter_feat.columns)}). LlamaRec "
                "and LRURec need timestamps: name the column with TIME_FIELD and load it with "
                "load_col: {inter: [..., timestamp]}."
            )
        super()._data_filtering()

    def _remove_duplication(self):
        """RecBole's, whose sort is not stable; the rows that stay keep their order."""
        keep = self.config["rm_dup_inter"]
        if keep is None or not self._is_exact:
            return super()._remove_duplication()
        by_time = self.inter_feat.sort_values(self.time_field, kind="stable")
        kept = by_time.drop_duplicates([self.uid_field, self.iid_field], keep=keep)
        self.inter_feat = kept.sort_index()

    @property
    def _is_exact(self) -> bool:
        return self.config["exact_chronology"] is not False

    def _change_feat_format(self):
        if self._is_exact and self.benchmark_filename_list is None:
            self.inter_feat.sort_values(
                [self.uid_field, self.time_field], kind="stable", inplace=True, ignore_index=True
            )
        times = self._exact_times()
        super()._change_feat_format()
        chosen = Chronology.of(ChoiceRows.of(self, times), self.user_num)  # rows of all parts
        self.chosen = SeenItems(chosen.starts, chosen.items)
        self.inter_feat.update(Interaction({CHOSEN_BEFORE: torch.from_numpy(chosen.before)}))

    def _exact_times(self) -> np.ndarray | None:
        """Times of the rows of ready-made splits, which RecBole leaves in the order of the files.

        All other rows have been sorted by them, and need none.
        """
        is_ready_made = self.benchmark_filename_list is not None
        if not (self._is_exact and is_ready_made and self.time_field in self.inter_feat):
            return None
        return self.inter_feat[self.time_field].to_numpy(dtype=np.float64)

    def item_texts(self, fallback: str | None = None) -> list[str]:
        """The text of every item by internal id; ``""`` for the padding item 0.

        Args:
            fallback: text of an item that has none, with ``{token}`` for its token.

        Returns:
            list of ``item_num`` texts.
        """
        template = self.config["item_text_format"]
        tokens = self.field2id_token[self.iid_field].tolist()
        columns = {
            field: [texts.get(token, "") for token in tokens]
            for field, texts in self._item_columns.items()
        }
        return ["", *item_texts(template, columns, tokens, fallback)[1:]]

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

    def _prepare_items(self) -> None:
        """Drop the items without text, or give a row to those without one."""
        template, ids = self.config["item_text_format"], self.item_feat[self.iid_field].tolist()
        columns = {name: [texts[i] for i in ids] for name, texts in self._item_columns.items()}
        has_text = np.array([text != "" for text in item_texts(template, columns, ids, None)])
        if not has_text.any():
            raise ValueError(
                f"item_text_format: {template!r} gives no text for any of the "
                f"{len(self.item_feat)} items, since {format_fields(template)[0]!r} is empty "
                "throughout. Name another field, or fill it in the .item file."
            )
        items = self._items_of_interactions()
        without_row = items[~items.isin(ids)]
        if len(without_row):
            self.logger.warning(
                f"{len(without_row)} items of the interactions, such as {without_row.iloc[0]!r}, "
                f"have no row in {self.dataset_name}.item (which has ids such as {ids[0]!r})"
            )
        if self.config["item_text_missing"] == "drop":
            self._drop_items_without_text(has_text)
        elif len(without_row):
            self._add_item_rows(without_row)

    def _add_item_rows(self, ids: pd.Series) -> None:
        """Rows without values, so that RecBole does not filter the items out."""
        rows: dict[str, Any] = {self.iid_field: ids.to_numpy()}
        for field in self.item_feat.columns.drop(self.iid_field):
            kind = self.field2type[field]
            if kind in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ):
                empty = np.array([], dtype=str if kind is FeatureType.TOKEN_SEQ else np.float64)
                rows[field] = pd.Series([empty] * len(ids), dtype=object)
            else:
                rows[field] = np.full(len(ids), np.nan)
        self.item_feat = pd.concat([self.item_feat, pd.DataFrame(rows)], ignore_index=True)

    def _drop_items_without_text(self, has_text: np.ndarray) -> None:
        n_items, n_inters = len(self.item_feat), len(self.inter_feat)
        self.item_feat = self.item_feat[has_text].reset_index(drop=True)
        ids = self.item_feat[self.iid_field]
        self._keep_interactions(self.inter_feat[self.iid_field].isin(ids))
        n_places = 0
        if self.benchmark_filename_list is not None:
            n_places = self._keep_in_histories(lambda flat: flat.isin(ids))
        if self.inter_feat.empty:
            raise DataSetError(
                "item_text_missing: drop leaves no interaction, since no item with an interaction "
                f"has text by item_text_format: {self.config['item_text_format']!r}. Fill its "
                "fields in the .item file, or set item_text_missing: fallback."
            )
        if n_items > len(self.item_feat) or n_inters > len(self.inter_feat) or n_places:
            in_histories = f", and {n_places} places of histories" if n_places else ""
            self.logger.info(
                f"item_text_missing: drop removed {n_items - len(self.item_feat)} items without "
                f"text, and {n_inters - len(self.inter_feat)} interactions with items without text"
                f"{in_histories}"
            )
