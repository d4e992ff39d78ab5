"""Lab 12: what can you claim? (Table 6; Table 3's random backbone). Write the eight functions; plain Python, no scipy.

    python labs/check.py 12          (as often as you like)

    here      | what
    values    | the scores of one row of a table, one a seed: [0.781, 0.791, 0.807]
    mean      | of one row over its n seeds
    spread    | its standard deviation over the seeds, with n - 1; what stands behind +- in RESULTS.md
"""
import itertools
import math

# t of Student's distribution that 2.5 % lie above, by degrees of freedom: twice (n - 1), for two rows of n seeds.
T_95 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 18: 2.101, 20: 2.086,
        22: 2.074, 24: 2.064, 26: 2.056, 28: 2.048, 30: 2.042, 32: 2.037, 34: 2.032, 36: 2.028, 38: 2.024}
# mIoU of the toy preset after 400 steps, three seeds, mean and spread: RESULTS.md, "Rows of the papers' tables at toy
# scale". The paper's mIoU of ADE20K: Tables 6 and 3; one training each.
TOY = {"table6-dp-sims": (0.650, 0.023), "table6-no-cross-attention": (0.394, 0.057),
       "table6-no-contrastive": (0.642, 0.013), "table3-random": (0.599, 0.027)}
PAPER = {"table6-dp-sims": 67.8, "table6-no-cross-attention": 64.5, "table6-no-contrastive": 66.0,
         "table3-random": 40.7}


def mean_and_spread(values):
    """(mean, spread) of the scores of n seeds.

        mean   = (x_1 + ... + x_n) / n
        spread = sqrt( ((x_1 - mean)^2 + ... + (x_n - mean)^2) / (n - 1) )

    n - 1, because the mean was computed from the same n numbers and lies closer to them than the true one does.
    """
    raise NotImplementedError("mean and standard deviation over the seeds, with n - 1")


def interval(mean_1, spread_1, mean_2, spread_2, n):
    """(low, high): the 95 % interval of the difference row 1 - row 2, n seeds each.

        d = mean_1 - mean_2        SE = sqrt( (spread_1^2 + spread_2^2) / n )        d - t SE ... d + t SE

    with t = T_95[2 (n - 1)]. It presumes that the seeds of a row scatter like bell curves of one width.
    """
    raise NotImplementedError("the 95 % interval of a difference, d -+ t SE")


def smallest_difference(spread, n):
    """The smallest difference d > 0 whose interval leaves 0 out, when both rows have this spread over n seeds.

    It is half the width of `interval`; call that, or do it by hand.
    """
    raise NotImplementedError("t SE, with the same spread in both rows")


def seeds_needed(spread, difference):
    """How many seeds a row until smallest_difference(spread, n) <= difference. -> n from 2 to 20, or None.

    T_95 ends at 20 seeds: None says that 20 are too few.
    """
    raise NotImplementedError("the smallest n for which t SE is not above the difference")


def permutation_p(a, b):
    """p of the permutation test: how often does chance alone give such a difference of means? Two-sided.

    a, b: scores of two rows, one a seed. If the rows do not differ, the names "a" and "b" say nothing. So give the name
    "a" to every choice of len(a) of all len(a) + len(b) scores (itertools.combinations), the observed one included,
    and take the share of choices whose |mean of a - mean of b| is at least the observed one, within 1e-9.
    """
    raise NotImplementedError("the share of all splits with at least the observed difference")


def sign_test_p(differences):
    """p of the sign test, two-sided: differences of pairs, row 1 - row 2 of the same seed.

    Differences of exactly 0 are left out; n are left. If the rows do not differ, each sign is a fair coin. k = how
    often the rarer sign occurs.

        p = min(1, 2 sum over j = 0 ... k of  (n over j) / 2^n)        (n over j) = math.comb(n, j)

    Without any difference, n = 0, p is 1.
    """
    raise NotImplementedError("twice the chance of so few of the rarer sign, under a fair coin")


def claim_of_table_6():
    """Which sentence may you write about cross-attention against concatenated noise? Return one letter.

    Compute interval(*TOY["table6-dp-sims"], *TOY["table6-no-cross-attention"], 3) first.

    A  "Cross-attention raises mIoU by 0.256."
    B  "On the toy scenes, after 400 steps, cross-attention scored 0.256 mIoU above concatenation (95 % interval of
       three seeds each: 0.16 to 0.35)."
    C  "We confirm Table 6: cross-attention is worth 3.3 points of mIoU on ADE20K."
    D  "Cross-attention is better with p < 0.05 by the permutation test over our three seeds a row."
    E  "After 400 steps nothing can be said about cross-attention."
    """
    raise NotImplementedError("one of the letters A to E")


def claim_of_the_backbone():
    """Which sentence may you write about a pre-trained against a random backbone? Return one letter.

    Compute interval(*TOY["table6-dp-sims"], *TOY["table3-random"], 3), and sign_test_p of three differences above 0.

    A  "A pre-trained backbone is better: it won with every seed, so the sign test is significant."
    B  "A pre-trained backbone does not help on the toy scenes: the interval contains 0."
    C  "The pre-trained backbone scored 0.051 higher, and higher with each of three seeds; an interval of -0.01 to 0.11
       does not exclude that it makes no difference here."
    D  "The paper's Table 3 is wrong: 27.1 points there, 5.1 here."
    E  "A backbone pre-trained on ImageNet is worth 0.051 mIoU."
    """
    raise NotImplementedError("one of the letters A to E")
