"""Lab 10: scores and how they lie (Sec. 4.1, Tables 1 to 3). Write the five functions.

    python labs/check.py 10          (as often as you like)

    paper   | here               | shape
    FID     | mean, S            | (D,), (D, D): mean and covariance of D features over pictures, float64
    mIoU    | predicted, truth   | (B, H, W) what a segmenter says of the generated pictures, and their label maps
            | confusion          | (K, K + 1) pixels, by their truth (rows) and prediction (columns)
"""
import numpy as np
import torch

import metrics
import metrics.fid
import support.ranks


def by_hand(mean_1, deviation_1, mean_2, deviation_2):
    """The Frechet distance of two Gaussians whose D numbers are independent. Lists of D floats -> a float

        sum over i of  (mean_1[i] - mean_2[i])^2 + (deviation_1[i] - deviation_2[i])^2

    deviation: the standard deviation, the root of the variance. It is what the formula of frechet_distance becomes when
    both covariances are diagonal. Show that on paper first: what is the trace of (S_1 S_2)^(1/2) then?
    """
    raise NotImplementedError("FID by hand: squared distance of the means, and of the deviations")


def frechet_distance(mean_1, S_1, mean_2, S_2):
    """The squared Frechet distance of two Gaussians [20 of the paper]. (D,), (D, D) tensors, float64 -> a float

        |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

    S may be singular: 50 pictures have 2,048 features. The root of S_1 S_2 itself is a numerical nightmare. But with
    S_1 = A_1 A_1^T and S_2 = A_2 A_2^T, Tr (S_1 S_2)^(1/2) is the sum of the singular values of A_1^T A_2.
    metrics.fid.square_root(S) gives such an A, (D, r). Rounding may end at -1e-12: a distance is at least 0.0.
    """
    raise NotImplementedError("FID: |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))")


def feature_statistics(features, pictures, ranks):
    """-> (mean (D,), covariance (D, D)), float64, over all pictures, without keeping their features.

        mean = sum of f / n           covariance = (sum of f f^T - n mean mean^T) / (n - 1)

    features(metrics.to_tensor(batch, ranks.device)) gives (B, D) float32 of a list of pictures; D is features.width.
    pictures: an iterable of such lists, of this rank alone; the last one may be shorter. n and both sums are summed
    over the ranks by support.ranks.sum_over_ranks(tensor, ranks.world). Sum in float64. No gradients.
    """
    raise NotImplementedError("FID: mean and covariance of features, batch by batch")


def confusions(predicted, truth, K):
    """Count pixels, picture by picture. (B, H, W) int64 both -> (B, K, K + 1) int64

        result[b, t, p] = pixels of picture b that are class t and are taken for class p

    truth is -1 where a pixel is not scored (unlabelled): it is left out (as an index, -1 is the last class).
    predicted is K, the last column, where the segmenter says something that is none of the K scored classes: that pixel
    is a miss of the class it lies on.
    """
    raise NotImplementedError("mIoU: pixels by truth (rows) and prediction (columns)")


def intersection_over_union(confusion):
    """IoU of each class. (..., K, K + 1), of `confusions` -> (..., K) float64

        IoU_c = hits_c / (truth_c + predicted_c - hits_c)

    NaN for a class that does not occur in the truth, whether it was predicted or not: the mIoU is the mean over the
    others, .nanmean(). The leading dimensions, such as one for pictures, stay.
    """
    raise NotImplementedError("mIoU: hits / (truth + predicted - hits), NaN for classes that are absent")
