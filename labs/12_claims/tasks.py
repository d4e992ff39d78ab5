"""What python labs/check.py 12 asks of lab.py."""
import re
import statistics
from pathlib import Path

import numpy as np

import losses
from labs.pieces import Task, load

LAB = load(Path(__file__).with_name("lab.py"))
RESULTS = Path(losses.__file__).with_name("RESULTS.md").read_text(encoding="utf-8")
ROWS = {row: tuple(map(float, numbers)) for row, *numbers in re.findall(
    r"^\|[^|]+\| `(table[\w-]+)` \| (\d\.\d+) \+- (\d\.\d+) \|", RESULTS, re.M)}
# why a sentence may not be written
TABLE_6 = {"A": "A says nothing of data set, length and uncertainty: 0.256 is one draw of three seeds",
           "C": "C is about another data set, another score and a hundred times as many steps",
           "D": "D cannot be: of the 20 splits of six scores two are the observed one and its mirror image, so p is at "
                "least 0.1",
           "E": "E throws away a difference whose interval is far from 0"}
BACKBONE = {"A": "A counts three coins: all alike comes out in one of four throws",
            "B": "B takes 'not shown' for 'shown not to be'; most of the interval is above 0",
            "D": "D compares ADE20K with toy scenes, ImageNet's features with half a minute's, and two mIoU of "
                 "different segmenters",
            "E": "E names ImageNet, which this backbone has not seen, and no uncertainty"}


def values_of_by_hand(mean_and_spread):
    for values in ([0.781, 0.791, 0.807], [1.0, 3.0], [0.5, 0.25, 0.75, 0.125]):
        mean, spread = mean_and_spread(values)
        np.testing.assert_allclose(mean, sum(values) / len(values), err_msg=f"mean of {values}", atol=1e-9)
        np.testing.assert_allclose(spread, statistics.stdev(values), err_msg=f"spread of {values}", atol=1e-9)


def the_rows_are_those_of_results(interval):
    for row, (mean, spread) in LAB.TOY.items():
        assert ROWS[row] == (mean, spread), f"{row}: RESULTS.md says {ROWS[row]}; mend lab.py and the handout"


def d_and_t_standard_errors_to_both_sides(interval):
    for rows, n in (((0.650, 0.023, 0.394, 0.057), 3), ((0.5, 0.02, 0.6, 0.01), 5), ((0.3, 0.1, 0.2, 0.0), 2)):
        mean_1, spread_1, mean_2, spread_2 = rows
        half = LAB.T_95[2 * n - 2] * ((spread_1 * spread_1 + spread_2 * spread_2) / n) ** 0.5
        np.testing.assert_allclose(interval(*rows, n), (mean_1 - mean_2 - half, mean_1 - mean_2 + half),
                                   err_msg=f"low and high for {rows}, n {n}", atol=1e-9)


def the_interval_just_leaves_0_out(smallest_difference):
    for spread, n in ((0.023, 3), (0.05, 10), (0.01, 2)):
        np.testing.assert_allclose(smallest_difference(spread, n), LAB.T_95[2 * n - 2] * spread * (2 / n) ** 0.5,
                                   err_msg=f"smallest difference for spread {spread}, n {n}", atol=1e-9)


def not_one_seed_more_or_less(seeds_needed):
    for spread, difference in ((0.023, 0.05), (0.023, 0.02), (0.01, 0.2), (0.023, 0.25), (0.05, 0.001)):
        fits = [n for n in range(2, 21) if LAB.T_95[2 * n - 2] * spread * (2 / n) ** 0.5 <= difference]
        expected, came = fits[0] if fits else None, seeds_needed(spread, difference)
        assert came == expected, f"seeds for spread {spread}, difference {difference}: {expected} was expected, " \
                                 f"{came} came"


def splits_by_hand(permutation_p):
    """The shares were counted on paper."""
    for a, b, expected, why in (
            ([0.6, 0.7, 0.8], [0.1, 0.2, 0.3], 2 / 20, "only the observed split and its mirror image are as far apart"),
            ([0.1, 0.2, 0.3], [0.6, 0.7, 0.8], 2 / 20, "the other way round is as far apart"),
            ([1, 3], [2, 7], 4 / 6, "of six choices {1, 2}, {3, 7} are further, {1, 3}, {2, 7} as far apart"),
            ([1.0, 1.0], [1.0, 1.0], 1.0, "all splits are alike"),
            ([9.0], [1.0, 2.0, 3.0], 1 / 4, "one of four choices"),
            ([4, 4], [3, 1], 2 / 6, "equal scores of two seeds are two scores"),
            ([0.02, 0.85, 0.33], [0.73, 0.14, 0.91], 14 / 20, "equal but for rounding is equal")):
        np.testing.assert_allclose(permutation_p(a, b), expected, err_msg=f"p of {a} and {b}: {why}", atol=1e-9)


def coins_by_hand(sign_test_p):
    for differences, expected in (([0.1, 0.2, 0.3], 2 / 8), ([-0.1, -0.2, -0.3, -1.0], 2 / 16),
                                  ([0.1, -0.2, 0.3, 0.4, 0.5], 2 * (1 + 5) / 32), ([0.0, 0.2, 0.1, 0.0, 0.3], 2 / 8),
                                  ([0.1, -0.1], 1.0), ([0.0], 1.0)):
        np.testing.assert_allclose(sign_test_p(differences), expected, err_msg=f"p of {differences}", atol=1e-9)


def sentence(expected, wrong):
    def the_sentence_says_what_was_measured(claim):
        answer = str(claim()).strip().upper()
        assert answer == expected, wrong.get(answer, f"one of the letters A to E was expected, {answer!r} came")
    return the_sentence_says_what_was_measured


TASKS = [
    Task("mean_and_spread", None, "the handout, \"Spread\"", [values_of_by_hand]),
    Task("interval", None, "the handout, \"An interval\"",
         [the_rows_are_those_of_results, d_and_t_standard_errors_to_both_sides]),
    Task("smallest_difference", None, "the handout, \"An interval\"", [the_interval_just_leaves_0_out]),
    Task("seeds_needed", None, "the handout, \"An interval\"", [not_one_seed_more_or_less]),
    Task("permutation_p", None, "the handout, \"Without a bell curve\"", [splits_by_hand]),
    Task("sign_test_p", None, "the handout, \"Without a bell curve\"", [coins_by_hand]),
    Task("claim_of_table_6", None, "Table 6, and RESULTS.md", [sentence("B", TABLE_6)]),
    Task("claim_of_the_backbone", None, "Table 3, and RESULTS.md", [sentence("C", BACKBONE)])]
