"""The teacher's: plausible mistakes of lab 10, as changes of the project's own functions. labs/check.py names them.

{task: [("This is what comes out ...", text of the function, text in its place), ...]}
SOLUTIONS: of the piece that the project does not have.
"""

SOLUTIONS = {"by_hand": """
def by_hand(mean_1, deviation_1, mean_2, deviation_2):
    means, deviations = zip(mean_1, mean_2), zip(deviation_1, deviation_2)
    total = sum((a - b) ** 2 for a, b in means) + sum((a - b) ** 2 for a, b in deviations)
    return total
"""}
# S_1^(1/2) S_2^(1/2) by the symmetric roots
SYMMETRIC = ("(lambda root: (root(S_1) @ root(S_2)).trace())(lambda S: (lambda e: (e[1] * e[0].clamp_min(0).sqrt()) @ "
             "e[1].T)(torch.linalg.eigh(S)))")
MISTAKES = {
    "by_hand": [
        ("with variances in place of deviations", "(a - b) ** 2 for a, b in deviations",
         "(a ** 2 - b ** 2) ** 2 for a, b in deviations"),
        ("without the deviations", " + sum((a - b) ** 2 for a, b in deviations)", ""),
        ("with the root at the end: FID is the squared distance", "return total", "return total ** 0.5"),
        ("with the difference of the variances", "(a - b) ** 2 for a, b in deviations",
         "abs(a ** 2 - b ** 2) for a, b in deviations"),
        ("with the mean over the D numbers in place of the sum", "for a, b in deviations)",
         "for a, b in deviations) / len(mean_1)")],
    "frechet_distance": [
        ("without the 2 before the root", "- 2 * trace", "- trace"),
        ("without the covariances", "+ S_1.trace() + S_2.trace() - 2 * trace", ""),
        ("with the distance of the means, not its square", "(mean_1 - mean_2).square().sum()",
         "(mean_1 - mean_2).norm()"),
        ("without the means", "(mean_1 - mean_2).square().sum() + ", ""),
        ("with Tr(S_1 S_2), without the root", "torch.linalg.svdvals(square_root(S_1).T @ square_root(S_2)).sum()",
         "(S_1 @ S_2).trace()"),
        ("with roots of the diagonals, as if the features were independent",
         "torch.linalg.svdvals(square_root(S_1).T @ square_root(S_2)).sum()",
         "(S_1.diagonal() * S_2.diagonal()).sqrt().sum()"),
        ("with Tr(S_1^(1/2) S_2^(1/2)): the root of a product is no product of roots",
         "torch.linalg.svdvals(square_root(S_1).T @ square_root(S_2)).sum()", SYMMETRIC),
        ("with the largest singular value in place of their sum", "square_root(S_2)).sum()", "square_root(S_2)).max()"),
        ("when rounding may end below 0", "max(distance.item(), 0.0)", "distance.item()")],
    "feature_statistics": [
        ("with n in place of n - 1", "/ (n - 1)", "/ n"),
        ("without taking the mean away", "(outer - n * torch.outer(mean, mean))", "outer"),
        ("when the mean is taken away once, not n times", "n * torch.outer", "torch.outer"),
        ("with the sum in place of the mean", "mean = total / n", "mean = total"),
        ("when a shorter last batch counts as a whole one", "totals[0] += len(f)", "totals[0] += 3"),
        ("in float32: without .double()", "ranks.device)).double()", "ranks.device))")],
    "confusions": [
        ("with truth and prediction exchanged", "truth * (K + 1) + predicted",
         "predicted.clamp_max(K - 1) * (K + 1) + truth"),
        ("when unlabelled pixels count as the last class", "torch.where(truth >= 0, truth * (K + 1) + predicted, K * "
         "(K + 1))", "(truth % K) * (K + 1) + predicted"),
        ("when a prediction that is no scored class is left out", "torch.where(truth >= 0,",
         "torch.where((truth >= 0) & (predicted < K),"),
        ("with one table for all pictures together", "counts[:, :-1].unflatten(1, (K, K + 1))",
         "counts[:, :-1].unflatten(1, (K, K + 1)).sum(dim=0, keepdim=True).expand(len(counts), -1, -1)"),
        ("with 1 for each pair that occurs in place of their number", "counts.scatter_add_(1, index, "
         "torch.ones_like(index))", "counts.scatter_(1, index, torch.ones_like(index))")],
    "intersection_over_union": [
        ("when absent classes get 0", "torch.where(truth > 0, hits / (truth + predicted - hits), torch.nan)",
         "hits / (truth + predicted - hits).clamp_min(1)"),
        ("when a class that is only predicted gets 0", "torch.where(truth > 0, hits / (truth + predicted - hits), "
         "torch.nan)", "hits / (truth + predicted - hits)"),
        ("when absent classes get 1", "torch.nan)", "1.0)"),
        ("when hits are counted twice in the union", "(truth + predicted - hits)", "(truth + predicted)"),
        ("with the accuracy of each class, hits / truth", "(truth + predicted - hits)", "truth"),
        ("with the precision of each class, hits / predicted", "(truth + predicted - hits)", "predicted"),
        ("with Dice, 2 hits / (truth + predicted)", "hits / (truth + predicted - hits)",
         "2 * hits / (truth + predicted)"),
        ("when misses in the last column are no part of the union", "truth = confusion.sum(dim=-1)",
         "truth = confusion[..., :-1].sum(dim=-1)")]}
