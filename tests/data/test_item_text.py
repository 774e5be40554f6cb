import pytest

from recbole_llamarec.data.item_text import format_fields, format_item_text, item_texts


def test_fields_in_order_of_first_use():
    assert format_fields("{b} ({a}) {b}") == ("b", "a")


@pytest.mark.parametrize("text", ["", "title", "{", "{}", "{a.b}", "{0}", "{a[0]}"])
def test_bad_formats_name_the_key(text):
    with pytest.raises(ValueError, match="item_text_format"):
        format_fields(text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"t": "Heat", "y": "1995"}, "Heat (1995)"),
        ({"t": "Heat", "y": ""}, "Heat"),
        ({"t": "", "y": "1995"}, ""),
        ({"t": " ", "y": "1995"}, ""),
        ({"t": "A  B", "y": "1"}, "A B (1)"),
        ({"t": "f() {x}", "y": "1"}, "f {x} (1)"),
    ],
)
def test_one_item(values, expected):
    assert format_item_text("{t} ({y})", values) == expected


def test_all_items_with_fallback():
    columns = {"t": ["", "A", ""]}
    assert item_texts("{t}", columns, ["x", "y", "z"], None) == ["", "A", ""]
    assert item_texts("{t}", columns, ["x", "y", "z"], "Item {token}") == ["Item x", "A", "Item z"]
