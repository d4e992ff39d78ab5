"""What python labs/check.py 10 asks of lab.py."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from labs.pieces import Task
from metrics import fid, to_tensor


def it_is_the_formula_for_diagonal_covariances(by_hand):
    for a, b in (([0.0], [1.0]), ([3.0], [1.0])), (([0.0], [1.0]), ([0.0], [3.0])), (
            ([1.0, 2.0, -1.0], [0.5, 0.0, 2.0]), ([0.0, 2.0, 4.0], [1.5, 3.0, 0.2])):
        gaussians = [(torch.tensor(mean).double(), torch.tensor(deviation).double().square().diag())
                     for mean, deviation in (a, b)]
        torch.testing.assert_close(float(by_hand(*a, *b)), fid.frechet_distance(*gaussians[0], *gaussians[1]),
                                   msg=lambda text: f"the distance of means and deviations {a} and {b}\n")


def the_middle_is_the_geometric_mean(frechet_distance):
    """Two Gaussians that are not diagonal, by the eigenvalues of S_1 S_2, which are roots of a quadratic equation."""
    S_1, S_2 = torch.tensor([[2.0, 1.0], [1.0, 3.0]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 4.0]]).double()
    product, zero = S_1 @ S_2, torch.zeros(2).double()
    trace, determinant = product.trace().item(), torch.linalg.det(product).item()
    roots = [(trace + sign * math.sqrt(trace ** 2 / 4 - determinant) * 2) / 2 for sign in (1, -1)]
    expected = 10.0 - 2 * sum(math.sqrt(root) for root in roots)
    torch.testing.assert_close(frechet_distance(zero, S_1, zero, S_2), expected,
                               msg=lambda text: "the distance of [[2, 1], [1, 3]] and [[1, -0.5], [-0.5, 4]]\n")


def a_distance_is_never_below_zero(frechet_distance):
    S = torch.randn(30, 30, generator=torch.Generator().manual_seed(0)).double()
    found = [frechet_distance(S[0], A @ A.T, S[0], A @ A.T) for A in (S, 3 * S, 7 * S, S + 1, S - 2, S[:, :9])]
    assert min(found) >= 0, f"at least 0 was expected of a Gaussian and itself, {min(found):.0e} came"


def two_ranks_are_summed(feature_statistics):
    """Both ranks have the same pictures: every sum over them is twice this rank's."""
    pictures = [np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8) for i in range(5)]

    def features(x):
        return x.flatten(1)[:, ::40].float()                                                          # (B, 5)
    features.width = 5
    rank = SimpleNamespace(device=torch.device("cpu"), rank=0, world=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda t, *_, **__: t.mul_(2))
        found = feature_statistics(features, [pictures[:3], pictures[3:]], rank)
    f = features(to_tensor(pictures * 2, torch.device("cpu"))).double()
    for name, mine, expected in zip(("mean", "covariance"), found, (f.mean(dim=0), torch.cov(f.T))):
        torch.testing.assert_close(mine, expected, msg=lambda text: f"the {name} over two ranks\n")


def every_pixel_is_counted_in_its_place(confusions):
    truth = torch.tensor([[[0, 0, 1], [2, -1, 1]], [[1, 1, 1], [-1, -1, 0]]])                         # (2, 2, 3)
    predicted = torch.tensor([[[0, 1, 1], [3, 0, 0]], [[1, 3, 2], [2, 3, 0]]])
    expected = [[[sum(t == r and p == c for t, p in zip(truth[b].flatten(), predicted[b].flatten())) for c in range(4)]
                 for r in range(3)] for b in range(2)]
    torch.testing.assert_close(confusions(predicted, truth, 3), torch.tensor(expected),
                               msg=lambda text: "pixels of [picture, truth, prediction]\n")


def two_classes_by_hand(intersection_over_union):
    confusion = torch.tensor([[[5, 2, 1], [4, 7, 4]], [[1, 0, 0], [0, 3, 1]]])                        # (2, 2, 3)
    expected = torch.tensor([[5 / (5 + 2 + 1 + 4), 7 / (4 + 7 + 4 + 2)], [1.0, 3 / 4]]).double()
    torch.testing.assert_close(intersection_over_union(confusion).double(), expected, atol=1e-6, rtol=0,
                               msg=lambda text: "IoU of [picture, class]\n")


def an_absent_class_is_nan(intersection_over_union):
    found = intersection_over_union(torch.tensor([[5, 0, 1], [0, 0, 0]]))[1].item()
    assert math.isnan(found), f"NaN was expected for a class that is nowhere, {found} came"


def a_class_that_is_never_found_is_0(intersection_over_union):
    found = intersection_over_union(torch.tensor([[5, 0, 1], [3, 0, 0]]))[1].item()
    assert found == 0, f"0 was expected for a class of 3 pixels that is never predicted, {found} came"


IOU = "test_metrics.py::test_iou_of_classes_that_are_not_in_the_truth"
TASKS = [
    Task("by_hand", None, "the handout, \"Two Gaussians\"", [it_is_the_formula_for_diagonal_covariances]),
    Task("frechet_distance", "metrics.fid.frechet_distance", "Sec. 4.1, FID [20]",
         ["test_metrics.py::test_frechet_distance_in_closed_form_also_of_singular_gaussians",
          the_middle_is_the_geometric_mean, a_distance_is_never_below_zero]),
    Task("feature_statistics", "metrics.fid.feature_statistics", "Sec. 4.1, FID [20]",
         ["test_metrics.py::test_streamed_statistics_are_numpys_and_count_the_last_batch", two_ranks_are_summed]),
    Task("confusions", "metrics.segmentation.confusions", "Sec. 4.1, mIoU",
         [every_pixel_is_counted_in_its_place, "test_metrics.py::test_miou_is_that_of_plain_loops"]),
    Task("intersection_over_union", "metrics.segmentation.intersection_over_union", "Sec. 4.1, mIoU",
         [two_classes_by_hand, an_absent_class_is_nan, a_class_that_is_never_found_is_0, IOU])]
