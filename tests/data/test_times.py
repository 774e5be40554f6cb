"""Times are numbers or dates; an interaction without one has no place in a history."""

from __future__ import annotations

import pytest
from atomic import INTER, data_set, last_items_of

from recbole_llamarec.data.atomic_files import DataSetError


def with_times(kind: str, times: list[str], items: str = "abcd") -> str:
    """Interactions of one user with some items in the file's order."""
    rows = [f"1\t{item}\t{time}\n" for item, time in zip(items, times, strict=True)]
    return f"user_id:token\titem_id:token\ttimestamp:{kind}\n" + "".join(rows)


@pytest.mark.parametrize("kind", ["token", "float"])
@pytest.mark.parametrize(
    ("times", "order"),
    [
        (["2019-02-01", "2019-01-08", "2018-12-31", "2019-01-31"], "cbda"),
        (["2019-01-08T23:00:00", "2019-01-08 22:59", "2019-01-09", "2019-01-08"], "dbac"),
        # 12:00 +02:00 is 10:00 UTC, 09:30 Z is before, 10:30 behind
        (["2019-01-08T12:00:00+02:00", "2019-01-08T09:30:00Z", "2019-01-08T10:30", "2020-01-01"],
         "bacd"),
        (["1969-12-31", "1970-01-02", "1901-01-01", "1970-01-01"], "cadb"),
        (["-5", "3", "-10.5", "0"], "cadb"),
        (["10", "9", "100", "1e1"], "badc"),  # as numbers, not as texts; ties in file order
        (["1546300800.25", "1546300800.5", "1546300800.125", "1546300801"], "cabd"),
    ],
)  # fmt: skip
def test_a_history_stands_in_the_order_of_its_times(workdir, kind, times, order):
    dataset = data_set(workdir, with_times(kind, times))
    assert last_items_of(dataset) == {"1": order[-1]}
    history = dataset.inter_feat[dataset.item_id_list_field][-1]
    assert "".join(dataset.id2token("item_id", history[history > 0].numpy())) == order[:-1]


def test_dates_are_seconds_since_1970(workdir):
    dataset = data_set(workdir, with_times("token", ["1970-01-01", "1970-01-02"], "ab"))
    assert dataset.inter_feat["timestamp"].tolist() == [0, 86400]


@pytest.mark.parametrize("kind", ["token", "float"])
@pytest.mark.parametrize(
    ("time", "word"),
    [
        ("", "empty"),
        ("nan", "empty"),
        ("NULL", "empty"),
        ("  ", "empty"),
        ("inf", "no time"),
        ("08.01.2019", "no time"),
        ("yesterday", "no time"),
        ("2019-01-08", "one kind"),
    ],
)
def test_a_row_without_a_time_is_refused_by_its_line(workdir, kind, time, word):
    with pytest.raises(DataSetError, match=r"s\.inter, line 4: TIME_FIELD: 'timestamp'") as raised:
        data_set(workdir, with_times(kind, ["1", "2", time, "4"]))
    assert word in str(raised.value)


def test_a_number_among_dates_is_refused(workdir):
    with pytest.raises(DataSetError, match="line 3: .*one kind"):
        data_set(workdir, with_times("token", ["2019-01-08", "1546905600"], "ab"))


def test_a_sequence_is_no_time(workdir):
    with pytest.raises(DataSetError, match="TIME_FIELD: 'timestamp' is of type float_seq"):
        data_set(workdir, with_times("float_seq", ["1 2", "3"], "ab"))


def test_a_time_field_of_another_name(workdir):
    inter = INTER.replace("timestamp:float", "when:token")
    assert last_items_of(data_set(workdir, inter, TIME_FIELD="when")) == {"1": "d", "2": "a"}
    with pytest.raises(ValueError, match="TIME_FIELD: 'timestamp'.*'when'"):
        data_set(workdir, inter)
