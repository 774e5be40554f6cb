"""How adapters have learnt: lines over the logarithm of samples, the page and the plot."""

from __future__ import annotations

import math

import learning
import pytest
from helpers import ROOT

from recbole_llamarec.adapters.card import AdapterCard
from recbole_llamarec.adapters.find import SHIPPED

FALLING = {100: 3.0, 300: 2.95, 500: 2.93, 700: 2.92, 900: 2.91}


def curve(losses: dict[int, float], name: str = "a-name") -> learning.Curve:
    by_text = {str(samples): loss for samples, loss in losses.items()}
    return learning.Curve(name, AdapterCard("tiny", "0", "a-model", {}, losses=by_text))


def test_a_part_stands_at_the_middle_of_its_samples():
    assert list(curve(FALLING).middles) == [50, 200, 400, 600, 800]


def test_a_line_over_the_logarithm_is_found_whatever_the_first_part_says():
    ends = [100, 300, 1700, 18300, 181700, 1818300]  # middles 50, 200, 1,000 and tenfold
    losses = [9.0, 3.0 - 0.02 * math.log10(2), 2.98, 2.96, 2.94, 2.92]
    straight = dict(zip(ends, losses, strict=True))
    assert list(curve(straight).middles) == [50, 200, 1000, 10_000, 100_000, 1_000_000]
    assert curve(straight).tenfold() == pytest.approx(0.02)


def test_a_short_curve_leads_nowhere():
    assert curve(FALLING).tenfold() > 0
    assert curve(dict(list(FALLING.items())[:4])).tenfold() is None


def test_the_command_writes_a_page_and_a_plot_of_the_cards_that_have_losses(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="benchmarks/requirements.txt is not installed")
    for name, losses in (("a", FALLING), ("b", {8: 2.5}), ("c", {})):
        folder = tmp_path / "adapters" / name
        folder.mkdir(parents=True)
        card = AdapterCard(
            "tiny", "0", "a-model", {"ranking_method": "readout"},
            losses={str(samples): loss for samples, loss in losses.items()},
        )  # fmt: skip
        (folder / "card.json").write_text(card.json())
    (tmp_path / "adapters" / "d.py").touch()
    out = tmp_path / "out"
    learning.main(["--adapters", str(tmp_path / "adapters"), "--out", str(out)])
    page = (out / "README.md").read_text()
    assert capsys.readouterr().out.strip() == page.strip()
    tenfold = curve(FALLING).tenfold()
    assert f"| a | readout | 900 | 3.000 | 2.910 | -{tenfold:.3f} | {2.91 - tenfold:.3f} |" in page
    assert "| b | readout | 8 | 2.500 | 2.500 | – | – |" in page and "| c |" not in page
    assert (out / "learning.svg").read_text().count("<svg") == 1


def test_the_stored_page_is_of_the_adapters_in_the_package():
    stored = ROOT / "benchmarks" / "results" / "learning" / "README.md"
    assert stored.read_text() == learning.page(learning.curves_of(SHIPPED))


def test_a_folder_without_curves_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        learning.main(["--adapters", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "--adapters: no adapter in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
