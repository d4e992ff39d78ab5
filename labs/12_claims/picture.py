"""Draw picture.png of lab 12:   python labs/12_claims/picture.py

Two rows of a table that are the same system: which difference do their means show, with 3, 10 and 30 seeds each? Drawn
from a bell curve with the spread that the toy preset has over its seeds (RESULTS.md: 0.023), 400,000 times.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project

from labs.curves import draw_curves  # noqa: E402

SPREAD, TIMES, WIDE = 0.023, 400_000, 0.08


def panels():
    """What draw_curves takes: one panel, a curve for each number of seeds."""
    edges, curves, rng = np.linspace(-WIDE, WIDE, 81), {}, np.random.default_rng(0)
    for n in (3, 10, 30):
        difference = rng.normal(0, SPREAD, (2, TIMES // n, n)).mean(axis=2)
        share, _ = np.histogram(difference[0] - difference[1], edges)
        curves[f"{n} seeds a row"] = np.convolve(share / share.sum(), np.ones(5) / 5, mode="same")
    middles = (edges[1:] + edges[:-1]) / 2
    return [{"title": "two rows that are the same: the difference of their means (mIoU)", "x": middles,
             "curves": curves, "ends": (-WIDE, WIDE), "top": 0.2}]


if __name__ == "__main__":
    file = Path(__file__).with_name("picture.png")
    draw_curves(panels(), file)
    print(file)
