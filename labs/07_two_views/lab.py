"""Lab 07: two views of a picture (Sec. 3.3, Eq. 5, 6). Write the six functions.

    python labs/check.py 07          (as often as you like)

    paper            | here             | shape
    H_x, H_g         | h_x, h_g         | (B, 256, H_l, W_l): features of the real and of the generated picture
    v, v+            | v, v_pos         | (B, A, d_v): A anchors in g, and the same places in x; vectors of length 1
    v-_n             | v_neg            | (B, M, d_v): M = N + 1 candidates, other places in x
                     | left_out         | (A, M) bool: True where this anchor does not use this candidate
    G^f(z_1, t), ... | features_1, .._2 | (P, C_f, H, W), what the last convolution of G sees; P pairs of pictures
"""
import torch
import torch.nn.functional as F

import losses


def draw_positions(pixels, anchors, negatives, rng):
    """Which of the `pixels` positions of a feature map are anchors, which their negatives. -> three tensors:

        anchor    (A,) positions, all different: the first A = anchors of a torch.randperm(pixels, generator=rng)
        candidate (N + 1,), all different: the first N + 1 of the next torch.randperm(pixels, generator=rng), shared by
                  all anchors; N = negatives
        left_out  (A, N + 1) bool: the one candidate that each anchor does not use: its own position, which is its
                  positive; where that was not drawn, the last candidate

    So every anchor has N negatives. A small map has fewer: all its positions are anchors, and N is at most pixels - 1.
    """
    raise NotImplementedError("Eq. 5: the positions of anchors and negatives")


def info_nce(v, v_pos, v_neg, left_out, tau=0.3):
    """L_NCE (Eq. 5). A scalar: summed over the anchors, mean over the pictures. Shapes are at the top of this file.

        L_NCE = -log( e^(v.v+ / tau) / (e^(v.v+ / tau) + sum_n e^(v.v-_n / tau)) )

    With a small tau e^(1 / tau) is beyond float32: torch.logsumexp(x) is log(sum e^x) without that.
    Take the products in float32, also under autocast. .float() alone is not enough, autocast turns a matrix product
    back: with torch.autocast(v.device.type, enabled=False).
    """
    raise NotImplementedError("Eq. 5: L_NCE of every anchor")


def project(P, scale, feature_map, positions):
    """Vectors at some positions of a map. (B, width, H_l, W_l), positions (n,) -> (B, n, d_v), of length 1

    Position p is row p // W_l, column p % W_l. scale: 0, 1, 2 for 1/4, 1/8, 1/16.
    P.mlps[scale]    the two-layer MLP of this scale, (..., width) -> (..., d_v)
    """
    raise NotImplementedError("Eq. 5: v, a vector of length 1 for each position")


def contrastive_loss(P, fake, real, rng, anchors=256, negatives=128, tau=0.3, reduction="sum"):
    """L_NCE (Eq. 5) over the three scales 1/4, 1/8, 1/16: their sum. fake, real (B, 3, H, W) in [-1, 1] -> a scalar

    For every scale: new positions, by losses.draw_positions; v at the anchors of the generated picture, v+ at the same
    places of the real one, v- at the candidates of the real one; losses.info_nce.

    P(image)                                 [(B, 256, H/4, W/4), (.., H/8, ..), (.., H/16, ..)], call it on fake first
    P.project(scale, feature_map, positions) yours as soon as you have written it
    reduction                                "sum" over the anchors; "mean": each scale is divided by its anchors

    Only the anchors carry a gradient: the real picture's side is a target, and gets torch.no_grad().
    """
    raise NotImplementedError("Eq. 5: the sum over the scales 1/4, 1/8, 1/16")


def diversity_loss(features_1, features_2, z_1, z_2, tau_div=1.0):
    """L_Div (Eq. 6), the mean over the pairs. features (P, C_f, H, W), z (P, d_z) -> a scalar

        L_Div = max[0, tau_div - ||G^f(z_1, t) - G^f(z_2, t)||_1 / ||z_1 - z_2||_1]

    In place of both L1 norms, sums of absolute values, take means: tau_div then does not depend on the picture's size.
    """
    raise NotImplementedError("Eq. 6: max[0, tau_div - ||G^f - G^f||_1 / ||z - z||_1]")


def blind_direction(weight):
    """How to cheat Eq. 6: a direction of G^f that the last convolution does not see. (3, C_f, 3, 3) -> u (C_f,)

    If G adds c(x, y) u to G^f, with any number c at each pixel, L_Div falls and no pixel of the picture changes. So
    each of the 27 filters weight[o, :, i, j], a vector of C_f numbers, must have the product 0 with u. C_f is more
    than 27.
    u has length 1. Look at torch.linalg.svd of the (27, C_f) matrix: with full_matrices=True, the default, the rows
    Vh[27:] are orthogonal to all 27 filters.
    """
    raise NotImplementedError("Eq. 6: a direction in which G^f moves and the picture does not")
