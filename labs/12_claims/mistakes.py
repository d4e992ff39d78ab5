"""The teacher's: solutions of lab 12, which the project does not have, and plausible mistakes as changes of them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
"""

SOLUTIONS = {
    "mean_and_spread": """
def mean_and_spread(values):
    mean = sum(values) / len(values)
    return mean, (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
""",
    "interval": """
def interval(mean_1, spread_1, mean_2, spread_2, n):
    d, SE = mean_1 - mean_2, math.sqrt((spread_1 ** 2 + spread_2 ** 2) / n)
    t = T_95[2 * (n - 1)]
    return d - t * SE, d + t * SE
""",
    "smallest_difference": """
def smallest_difference(spread, n):
    return T_95[2 * (n - 1)] * math.sqrt(2 * spread ** 2 / n)
""",
    "seeds_needed": """
def seeds_needed(spread, difference):
    for n in range(2, 21):
        if T_95[2 * (n - 1)] * math.sqrt(2 * spread ** 2 / n) <= difference:
            return n
    return None
""",
    "permutation_p": """
def permutation_p(a, b):
    pooled, n = [*a, *b], len(a)
    def apart(names):
        first = [pooled[i] for i in names]
        others = [pooled[i] for i in range(len(pooled)) if i not in names]
        return abs(sum(first) / len(first) - sum(others) / len(others))
    observed = apart(range(n))
    found = [apart(names) >= observed - 1e-9 for names in itertools.combinations(range(len(pooled)), n)]
    return sum(found) / len(found)
""",
    "sign_test_p": """
def sign_test_p(differences):
    up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    n, k = up + down, min(up, down)
    return min(1, 2 * sum(math.comb(n, j) for j in range(k + 1)) / 2 ** n)
""",
    "claim_of_table_6": """
def claim_of_table_6():
    return "B"
""",
    "claim_of_the_backbone": """
def claim_of_the_backbone():
    return "C"
"""}
MISTAKES = {
    "mean_and_spread": [
        ("with n in place of n - 1", "(len(values) - 1)", "len(values)"),
        ("without the root: that is the variance", "** 0.5", "** 1"),
        ("with the standard error of the mean in place of the spread of the seeds", "** 0.5",
         "** 0.5 / len(values) ** 0.5"),
        ("with the largest minus the smallest value as spread", "(sum((x - mean) ** 2 for x in values) / "
         "(len(values) - 1)) ** 0.5", "max(values) - min(values)")],
    "interval": [
        ("without n: the spread of the seeds in place of the standard error", "/ n)", "/ 1)"),
        ("when the spreads are added instead of their squares", "math.sqrt((spread_1 ** 2 + spread_2 ** 2) / n)",
         "(spread_1 + spread_2) / math.sqrt(n)"),
        ("with the 1.96 of a large sample in place of t", "T_95[2 * (n - 1)]", "1.96"),
        ("with the degrees of freedom of twice as many seeds", "T_95[2 * (n - 1)]", "T_95[4 * (n - 1)]"),
        ("with the degrees of freedom of one row: n - 1", "T_95[2 * (n - 1)]", "T_95.get(n - 1, 12.706)"),
        ("with one standard error to each side", "T_95[2 * (n - 1)]", "1"),
        ("with row 2 minus row 1", "mean_1 - mean_2", "mean_2 - mean_1"),
        ("with the spread of row 1 alone", "(spread_1 ** 2 + spread_2 ** 2)", "(2 * spread_1 ** 2)")],
    "smallest_difference": [
        ("with the uncertainty of one row: both rows scatter", "2 * spread ** 2", "spread ** 2"),
        ("with the spread itself", "T_95[2 * (n - 1)] * math.sqrt(2 * spread ** 2 / n)", "spread"),
        ("with the whole width of the interval", "return T_95", "return 2 * T_95"),
        ("without t", "T_95[2 * (n - 1)] * ", ""),
        ("without n", "/ n)", "/ 1)")],
    "seeds_needed": [
        ("with one seed more than needed", "return n", "return n + 1"),
        ("with t of 4 degrees of freedom, whatever n", "T_95[2 * (n - 1)]", "T_95[4]"),
        ("with 20 where even 20 seeds are too few", "return None", "return 20"),
        ("with the uncertainty of one row", "2 * spread ** 2", "spread ** 2"),
        ("when the search begins with three seeds", "range(2, 21)", "range(3, 21)")],
    "permutation_p": [
        ("without the observed split, so that p may be 0", "sum(found) / len(found)",
         "(sum(found) - 1) / (len(found) - 1)"),
        ("when only larger differences are counted, not equal ones", ">= observed - 1e-9", "> observed + 1e-9"),
        ("with one side alone", "abs(sum(first) / len(first) - sum(others) / len(others))",
         "sum(first) / len(first) - sum(others) / len(others)"),
        ("with the share of smaller differences: 1 - p", ">= observed - 1e-9", "< observed - 1e-9"),
        ("with sums in place of means, where the rows have different numbers of seeds",
         "sum(first) / len(first) - sum(others) / len(others)", "sum(first) - sum(others)")],
    "sign_test_p": [
        ("with one side alone", "2 * sum(", "sum("),
        ("when differences of 0 count as seeds", "n, k = up + down,", "n, k = len(differences),"),
        ("with exactly k of the rarer sign in place of at most k", "for j in range(k + 1)", "for j in [k]"),
        ("with the commoner sign in place of the rarer", "min(up, down)", "max(up, down)"),
        ("without the upper end of 1", "min(1, 2 * sum(math.comb(n, j) for j in range(k + 1)) / 2 ** n)",
         "2 * sum(math.comb(n, j) for j in range(k + 1)) / 2 ** n")],
    "claim_of_table_6": [
        ("when a score is taken for an effect", "B", "A"), ("when the toy is taken for ADE20K", "B", "C"),
        ("when a small p is taken for granted", "B", "D"), ("when caution goes too far", "B", "E")],
    "claim_of_the_backbone": [
        ("when \"every seed\" is taken for proof", "C", "A"),
        ("when \"not shown\" is taken for \"not there\"", "C", "B"),
        ("when the toy is held against ADE20K", "C", "D"), ("when the name of a row is not looked up", "C", "E")]}
