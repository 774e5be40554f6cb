"""How adapters have learnt: loss over samples, and where ten times as many would lead.

    python benchmarks/learning.py --out benchmarks/results/learning

The losses stand in the adapters' cards. What an adapter started from is not counted in its samples.
The last figure is a straight line over the logarithm of samples, drawn on: loss cannot fall so for
ever, and a learning rate that falls to zero bends the curve, so that it is no promise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from efficiency_report import import_pyplot
from results import write_whole
from tables import markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout

from recbole_llamarec.adapters.card import AdapterCard, read_card
from recbole_llamarec.adapters.find import SHIPPED

LEAST_POINTS = 4  # of a line


@dataclass(frozen=True)
class Curve:
    """What an adapter's card tells of its tuning.

    Attributes:
        name: the adapter's.
        card: with its losses.
    """

    name: str
    card: AdapterCard

    @property
    def ends(self) -> list[int]:
        """Samples at the end of each part."""
        return [int(samples) for samples in self.card.losses]

    @property
    def middles(self) -> np.ndarray:
        """Samples in the middle of each part, which its mean loss stands for."""
        return np.array([(low + high) / 2 for low, high in pairwise([0, *self.ends])])

    @property
    def losses(self) -> np.ndarray:
        """Mean loss of each part, in nats."""
        return np.array(list(self.card.losses.values()))

    def tenfold(self) -> float | None:
        """By how much a line through all parts but the first falls while samples grow tenfold.

        ``None`` with fewer than four such parts. The first one is left out, in which letters are
        bound and the learning rate is high.
        """
        if len(self.losses) <= LEAST_POINTS:
            return None
        return -float(np.polyfit(np.log10(self.middles[1:]), self.losses[1:], 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adapters", type=Path, default=SHIPPED, help="folder of their folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page and the plot")
    options = parser.parse_args(arguments)
    curves = curves_of(options.adapters)
    if not curves:
        parser.error(f"--adapters: no adapter in {options.adapters} has a card with losses.")
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(curves)
    write_whole(options.out / "README.md", text.encode())
    plot(curves, options.out / "learning.svg")
    print(text)


def curves_of(adapters: Path) -> list[Curve]:
    """Curves of the adapters in a folder, by name; of those whose cards have losses."""
    cards = {folder.name: read_card(folder) for folder in sorted(adapters.iterdir())}
    return [Curve(name, card) for name, card in cards.items() if card and card.losses]


HEAD = ("adapter", "read by", "samples", "first part", "last part", "tenfold", "at ten times")
TEXT = """# How the adapters have learnt

Made by `python benchmarks/learning.py --out benchmarks/results/learning` from the adapters' cards.
Loss in nats, its mean over a part of tuning; an even guess among 20 candidates costs 2.996.
*Tenfold*: by how much the loss changes while samples grow tenfold, by a line over their logarithm
through all parts but the first; *at ten times*: the last part's loss, drawn on by it, which is no
promise.

{table}

![Loss over samples](learning.svg)
"""


def page(curves: Sequence[Curve]) -> str:
    """The page: a table of the curves, and the plot."""
    body = []
    for curve in curves:
        tenfold, last = curve.tenfold(), curve.losses[-1]
        led = ["–", "–"] if tenfold is None else [f"{-tenfold:+.3f}", f"{last - tenfold:.3f}"]
        ends = [f"{curve.losses[0]:.3f}", f"{last:.3f}"]
        method = curve.card.prompts["ranking_method"]
        body.append([curve.name, method, str(curve.ends[-1]), *ends, *led])
    return TEXT.format(table=markdown_table(HEAD, body))


def plot(curves: Sequence[Curve], file: Path) -> None:
    """Losses over samples, which have a logarithmic axis, as SVG."""
    pyplot = import_pyplot()
    pyplot.rcParams["svg.hashsalt"] = "learning"  # equal figures give equal files
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for curve in curves:
        axes.plot(curve.middles, curve.losses, marker="o", markersize=3, label=curve.name)
    axes.set_xscale("log")
    axes.set_xlabel("samples")
    axes.set_ylabel("loss, nats")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
