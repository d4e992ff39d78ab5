"""Lab 06: C + 1 classes for every pixel (Sec. 3.3, Eq. 3, 4). Write the five functions.

    python labs/check.py 06          (as often as you like)

    paper        | here                     | shape
    p(x), p(g)   | real_logits, fake_logits | (B, C + 1, H, W), before the softmax; index C, the last, is "fake"
    t            | label_map                | (B, H, W) integers 0..C-1
    alpha_c      | alpha                    | (C,), a weight a class
    gamma        | gamma                    | the exponent of the focal loss, 2 in the paper
    epsilon      | smoothing                | of the label smoothing, on real pixels alone
"""
import torch
import torch.nn.functional as F

import losses


def class_weights(label_counts, unknown=None):
    """alpha_c of Eq. 3 and 4, "the same weighting scheme as in [53]" (OASIS). label_counts (C,) -> (C,) float32

        alpha_c = (n_1 + ... + n_C) / (K n_c)        n_c = label_counts[c], the pixels of class c in the batch
        K = the number of classes that are present, n_c > 0, the unknown one not counted

    unknown: the index of the class of unlabelled pixels, or None. It and absent classes get 0. Unlabelled pixels are
    pixels of the batch all the same: they count in the sum above. K may be 0: then all weights are 0.
    """
    raise NotImplementedError("Eq. 3, 4: alpha_c = B H W / (K n_c)")


def focal_log(log_p, gamma):
    """(1 - p)^gamma log p, element by element, from log p. Any shape -> the same shape.

    Two traps. Near p = 1, 1 - p is lost in float32: torch.expm1(x) is e^x - 1 without that loss. And at p = 1 exactly
    x^0.5 has an infinite gradient: keep 1 - p at 1e-12 at least, .clamp_min(1e-12).
    """
    raise NotImplementedError("Eq. 3, 4: (1 - p)^gamma log p")


def discriminator_loss(real_logits, fake_logits, label_map, alpha, gamma=2.0, smoothing=0.1):
    """L_D (Eq. 3). A scalar: summed over pixels, mean over images. Shapes are at the top of this file.

        L_D = - E sum_c alpha_c sum_i t_ic (1 - p(x)_ic)^gamma log p(x)_ic
              - E sum_i (1 - p(g)_i,C+1)^gamma log p(g)_i,C+1

    The first line is over real pictures x, the second over generated ones g. Index C + 1 of the paper, which counts
    from 1, is index C here. The second line has no alpha, and counts unlabelled pixels, too.

    With smoothing epsilon, the focal term of a real pixel of class c becomes a mean over all C + 1 outputs k:

        (1 - epsilon) f(p_c) + sum over k other than c of  epsilon / C f(p_k)        f(p) = (1 - p)^gamma log p

    still times alpha of the pixel's own class c. losses.focal_log is f; F.log_softmax gives log p. The term of each
    pixel's own class: tensor.gather(1, label_map[:, None])[:, 0], from (B, C + 1, H, W) to (B, H, W).
    """
    raise NotImplementedError("Eq. 3: L_D, the focal loss of D over C + 1 outputs")


def generator_loss(fake_logits, label_map, alpha, gamma=2.0):
    """L_G (Eq. 4). A scalar: summed over pixels, mean over images.

        L_G = - E sum_c alpha_c sum_i t_ic (1 - p(g)_ic)^gamma log p(g)_ic

    G wants D to say the class of the label, at every pixel. No smoothing.
    """
    raise NotImplementedError("Eq. 4: L_G, the same focal sum on the generated picture")


def best_answer(num_classes, gamma, smoothing):
    """Where L_D (Eq. 3) is lowest: the p that D should give to the true class of a real pixel. -> a float

    One real pixel, alpha 1. The other C = num_classes outputs share what is left, (1 - p) / C each (-f is convex for
    small p, so the lowest cost is where they are equal). Write the smoothed term of discriminator_loss for this pixel
    as a function of p, and find the p between 0 and 1 where it is lowest, to within 0.001: by trying many p,
    torch.linspace(...), or by hand where you can. Use float64.
    """
    raise NotImplementedError("Eq. 3 with label smoothing: the p at which its real term is lowest")
