"""Eq. 3 to 6, what surrounds them and their sums, against plain Python loops written from the paper (Sec. 3.3).

    python -m pytest tests/test_losses.py          (from the repository root; a few seconds on a CPU)

Oracle: the equations as printed, recomputed on tiny tensors (B=2, C=3, H=2, W=3) with nothing but Python numbers, and
a few values that fit on the back of an envelope. Where an equation's test fails, read the equation in the paper first,
then losses.py. Labels are 0..C-1; the logits have C + 1 channels and "fake" is the last of them, index C.
"""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train
from losses import (VGG_TAPS, ContrastiveFeatures, class_weights, contrastive_loss, discriminator_loss,
                    diversity_loss, draw_positions, equal_weights, focal_log, generator_loss, info_nce)
from test_discriminator import small_discriminator
from test_generator import assert_is, label_maps, noise, tiny_generator, without_gradient

B, C, H, W = 2, 3, 2, 3


def random_case(seed=0):
    """Logits for real and generated pictures (B, C + 1, H, W), labels (B, H, W), one alpha a class (C,)."""
    random = torch.Generator().manual_seed(seed)
    real_logits, fake_logits = (2 * torch.randn(B, C + 1, H, W, generator=random) for _ in range(2))
    return real_logits, fake_logits, torch.randint(C, (B, H, W), generator=random), torch.tensor([0.5, 2.0, 3.0])


def probability(logits, b, k, y, x):
    """p of output k at one pixel: the softmax over the C + 1 outputs, as a Python number."""
    e = [math.exp(logit) for logit in logits[b, :, y, x].tolist()]
    return e[k] / sum(e)


def focal(p, gamma):
    return (1 - p) ** gamma * math.log(p)


# ----------------------------------------------------- L_D and L_G, pixel by pixel, and the weights of the classes

def loops_eq3(real_logits, fake_logits, label_map, alpha, gamma, epsilon):
    """L_D (Eq. 3), one pixel at a time; epsilon goes in equal parts to the C outputs that are not t."""
    L_D, C = 0.0, len(alpha)
    for b, y, x in np.ndindex(label_map.shape):
        t = label_map[b, y, x].item()
        for k in range(C + 1):
            target = 1 - epsilon if k == t else epsilon / C
            L_D -= alpha[t].item() * target * focal(probability(real_logits, b, k, y, x), gamma)
        L_D -= focal(probability(fake_logits, b, C, y, x), gamma)
    return L_D / len(label_map)  # E: the mean over images


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_eq3_discriminator_loss_is_the_papers_sum(epsilon):
    """(Eq. 3) with gamma 2: sums over classes and pixels, mean over images. Label smoothing has targets 1 - epsilon,
    and epsilon / C for each other output, weighted by the true label's alpha. It is one-sided: real pixels alone."""
    case = random_case()
    assert_is(discriminator_loss(*case, gamma=2.0, smoothing=epsilon), loops_eq3(*case, gamma=2.0, epsilon=epsilon),
              "L_D is not the sum of Eq. 3")


def test_eq3_gamma_0_is_the_weighted_cross_entropy():
    """(Eq. 3) "The standard cross-entropy is recovered for gamma = 0". Oracle: torch's cross-entropy."""
    real_logits, fake_logits, label_map, alpha = random_case()
    weight = torch.cat([alpha, torch.ones(1)])
    expected = (F.cross_entropy(real_logits, label_map, weight, reduction="sum")
                + F.cross_entropy(fake_logits, torch.full_like(label_map, C), reduction="sum")) / B
    L_D = discriminator_loss(real_logits, fake_logits, label_map, alpha, gamma=0.0, smoothing=0.0)
    assert_is(L_D, expected, "with gamma 0, Eq. 3 must be OASIS's weighted cross-entropy")


def test_eq3_by_hand():
    """(Eq. 3) All logits 0: p = 1/4 everywhere, so each pixel costs (3/4)^2 ln 4, real and generated alike. Real pixels
    surely of their class and generated ones surely fake: the loss is 0."""
    logits, label_map, alpha = torch.zeros(B, C + 1, H, W), random_case()[2], torch.ones(C)
    L_D = discriminator_loss(logits, logits, label_map, alpha, smoothing=0.0)
    assert_is(L_D, 2 * (H * W) * 0.5625 * math.log(4), "12 pixels of (3/4)^2 ln 4 = 9.357 were expected")
    real_logits = 50 * F.one_hot(label_map, C + 1).permute(0, 3, 1, 2).float()
    fake_logits = 50 * F.one_hot(torch.full_like(label_map, C), C + 1).permute(0, 3, 1, 2).float()
    L_D = discriminator_loss(real_logits, fake_logits, label_map, alpha, smoothing=0.0)
    assert_is(L_D, 0.0, "nothing is wrong with these answers, yet they cost something")


def test_eq3_fake_is_the_last_logit():
    """(Eq. 3) "the label index C + 1 is used for the fake class": index C from zero. OASIS's code has index 0."""
    real_logits, _, label_map, alpha = random_case()
    losses = []
    for k in range(C + 1):
        sure_of_k = torch.zeros(B, C + 1, H, W)
        sure_of_k[:, k] = 20.0
        losses.append(discriminator_loss(real_logits, sure_of_k, label_map, alpha).item())
    assert losses.index(min(losses)) == C, f"calling generated pixels k costs {losses}: the last must be cheapest"


def test_eq3_unknown_pixels_count_as_fake_but_not_as_real():
    """(Eq. 3) alpha of the unknown class is 0; the second sum runs over all pixels and has no alpha."""
    real_logits, fake_logits, label_map, _ = random_case()
    label_map[:], alpha = 0, torch.tensor([0.0, 1.0, 1.0])  # every pixel is of class 0, the unknown one
    real_logits.requires_grad_(), fake_logits.requires_grad_()
    discriminator_loss(real_logits, fake_logits, label_map, alpha).backward()
    assert not real_logits.grad.any(), "unknown pixels of a real image must not train D"
    assert fake_logits.grad[:, C].all(), "every generated pixel must train D, whatever its label"


def loops_eq4(fake_logits, label_map, alpha, gamma):
    """L_G (Eq. 4), one pixel and class at a time."""
    L_G = 0.0
    for b, y, x in np.ndindex(label_map.shape):
        for c in range(len(alpha)):
            t_ic = 1 if label_map[b, y, x].item() == c else 0
            L_G -= alpha[c].item() * t_ic * focal(probability(fake_logits, b, c, y, x), gamma)
    return L_G / len(label_map)


def test_eq4_generator_loss_is_the_papers_sum():
    """(Eq. 4) The same focal sum as in Eq. 3, on the generated picture, with no smoothing."""
    _, *case = random_case()
    assert_is(generator_loss(*case, gamma=2.0), loops_eq4(*case, gamma=2.0), "L_G is not the sum of Eq. 4")


def test_eq4_unknown_pixels_do_not_train_the_generator():
    """(Eq. 4) alpha 0 silences the unknown class exactly, and only it."""
    _, fake_logits, label_map, _ = random_case()
    fake_logits.requires_grad_()
    generator_loss(fake_logits, label_map, torch.tensor([0.0, 1.0, 1.0])).backward()
    moved = fake_logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, label_map != 0), "the gradient must be zero at pixels of class 0, and only there"


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gap", [69.1, 200.0, 10_000.0])
def test_eq3_eq4_stay_finite_when_the_right_class_is_hopeless(gamma, gap):
    """(Eq. 3, 4) p = e^-69.1 = 1e-30 and far less: -log p is the gap itself, and its gradient -1 a pixel."""
    logits = torch.tensor([0.0, gap]).view(1, 2, 1, 1).requires_grad_()  # one pixel, one class, and "fake"
    loss = generator_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1), gamma)
    loss.backward()
    assert_is(loss.detach(), gap, "(1 - p)^gamma is 1 here, so that the loss is -log p")
    assert_is(logits.grad.flatten(), [-1.0, 1.0], "the gradient must not vanish where the answer is most wrong")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gap", [0.0, 15.0, 69.1, 200.0, 10_000.0])
def test_eq3_values_and_gradients_are_finite_at_p_0_and_at_p_1(gamma, gap):
    """(Eq. 3) Some pixels surely right, some surely wrong, every output smoothed: no inf, no nan anywhere."""
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])                             # (pixel, output): class 0 or "fake"
    real_logits, fake_logits = ((gap * signs).T.reshape(1, 2, 1, 2).clone().requires_grad_() for _ in range(2))
    loss = discriminator_loss(real_logits, fake_logits, torch.zeros(1, 1, 2, dtype=torch.long), torch.ones(1), gamma)
    loss.backward()
    assert loss.isfinite(), f"the loss is {loss.item()} at logits {gap} apart"
    for name, logits in (("real", real_logits), ("fake", fake_logits)):
        assert logits.grad.isfinite().all(), f"gradient of the {name} logits: {logits.grad.flatten().tolist()}"


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_eq4_a_certain_answer_costs_nothing_and_teaches_nothing(gamma):
    """(Eq. 4) At p = 1 exactly both factors are 0; d/dx of 0^0.5 is infinite, which must not come through."""
    logits = torch.tensor([200.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    loss = generator_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1), gamma)
    loss.backward()
    assert loss == 0, f"a certain and right answer costs {loss.item()}"
    assert_is(logits.grad, torch.zeros(1, 2, 1, 1), "its gradient must be 0", atol=1e-5, rtol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_eq3_focal_factor_is_exact_near_p_1(gamma):
    """(Eq. 3) log p = -1e-9: 1 - p is 1e-9, though p itself is 1 in float32, and 1 - 1 would be 0."""
    assert_is(focal_log(torch.tensor([-1e-9]), gamma), [1e-9 ** gamma * -1e-9],
              "(1 - p)^gamma log p for a nearly certain answer", rtol=1e-4, atol=0)


def test_every_loss_is_float32_under_autocast():
    """bfloat16 keeps 8 bits: the losses must come out as without autocast, to float32's precision. Networks under
    autocast return bfloat16 logits; the softmax and the power of Eq. 3 and 4 are taken in float32 all the same."""
    (real, fake, *labels), random = random_case(), torch.Generator().manual_seed(1)
    v, v_pos, v_neg = (F.normalize(torch.randn(2, n, 8, generator=random), dim=2) for n in (4, 4, 5))
    features, z = torch.randn(2, 2, 3, 2, 3, generator=random), torch.randn(2, 2, 4, generator=random)
    for loss, case in ((discriminator_loss, (real, fake, *labels)), (generator_loss, (fake, *labels)),
                       (discriminator_loss, (real.bfloat16(), fake.bfloat16(), *labels)),
                       (generator_loss, (fake.bfloat16(), *labels)),
                       (info_nce, (v, v_pos, v_neg, torch.eye(4, 5, dtype=torch.bool))),
                       (diversity_loss, (*features, *z, torch.tensor(3.0)))):
        exact = loss(*(t.float() if t.dtype == torch.bfloat16 else t for t in case))
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                value = loss(*case)
            what = f"{loss.__name__} of {case[0].dtype}, autocast {enabled}"
            assert value.dtype == torch.float32, f"{what} is {value.dtype}"
            assert_is(value, exact, f"{what} loses precision", rtol=1e-6, atol=0)


@pytest.mark.parametrize("what, counts, unknown, expected", [
    ("4 pixels / (3 known classes x 1 pixel) = 4/3, and 0 for the unknown", [1, 1, 1, 1], 0, [0, 4 / 3, 4 / 3, 4 / 3]),
    ("12 / (2 n_c), not 6 / (2 n_c): unknown pixels are pixels of the batch", [6, 2, 4], 0, [0, 3.0, 1.5]),
    ("an absent class gets 0, and K counts the two classes present", [4, 0, 8], None, [1.5, 0, 0.75]),
    ("K = 0, nothing to learn from these labels: zeros, not nan or inf", [9, 0, 0], 0, [0, 0, 0])])
def test_class_weights_by_hand(what, counts, unknown, expected):
    """B*H*W / (K n_c), K the number of known classes present."""
    assert_is(class_weights(torch.tensor(counts), unknown), expected, what)


def test_class_weights_by_loops():
    """The definition, class by class, on random label maps with an unknown class and a missing one."""
    random, classes, unknown = torch.Generator().manual_seed(0), 6, 4
    label_map = torch.randint(classes, (2, 4, 5), generator=random)
    label_map[label_map == 2] = 1  # class 2 does not occur
    n = [sum(t == c for t in label_map.flatten().tolist()) for c in range(classes)]
    K = sum(1 for c in range(classes) if n[c] > 0 and c != unknown)
    expected = [2 * 4 * 5 / (K * n[c]) if n[c] > 0 and c != unknown else 0.0 for c in range(classes)]
    assert K == 4, "this test wants four known classes present, one unknown and one absent"
    assert_is(class_weights(torch.tensor(n), unknown), expected, "alpha_c = B*H*W / (K n_c)")
    assert_is(equal_weights(torch.tensor(n), unknown), [1, 1, 1, 1, 0, 1], "Table 8: 1, and 0 for the unknown class")


# ------------------------------------------------------------------------------------- L_NCE, contrastive

def loops_eq5(v, v_pos, v_neg, left_out, tau):
    """L_NCE (Eq. 5), anchor by anchor; a vector that is left out of an anchor's negatives is not in its sum."""
    total = 0.0
    for b, a in np.ndindex(v.shape[:2]):
        dot = lambda u: sum(p * q for p, q in zip(v[b, a].tolist(), u.tolist()))
        positive = math.exp(dot(v_pos[b, a]) / tau)
        negatives = sum(math.exp(dot(v_neg[b, n]) / tau) for n in range(v_neg.shape[1]) if not left_out[a, n])
        total += -math.log(positive / (positive + negatives))
    return total / len(v)


def test_eq5_info_nce_is_the_papers_sum():
    """(Eq. 5) for three anchors and four candidates, of which each anchor leaves out one."""
    random = torch.Generator().manual_seed(0)
    v, v_pos, v_neg = (F.normalize(torch.randn(B, n, 5, generator=random), dim=2) for n in (3, 3, 4))
    left_out = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    assert_is(info_nce(v, v_pos, v_neg, left_out, 0.3), loops_eq5(v, v_pos, v_neg, left_out, 0.3),
              "L_NCE is not Eq. 5, summed over the anchors")


def test_eq5_by_hand():
    """(Eq. 5) All vectors equal: the positive is one of N + 1 = 8 alike, so every anchor costs ln 8. With a small tau
    e^(1 / 0.005) = e^200 is beyond float32; the loss of a hopeless anchor is 200 all the same."""
    same = torch.ones(2, 5, 4) / 2
    loss = info_nce(same, same, same[:, :1].expand(2, 7, 4), torch.zeros(5, 7, dtype=torch.bool))
    assert_is(loss, 5 * math.log(8), "5 anchors of ln 8 = 2.079 each")
    v, v_neg = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    loss = info_nce(v, -v, v_neg, torch.zeros(1, 1, dtype=torch.bool), tau=0.005)
    assert_is(loss, 200.0, "-log(e^-200 / (e^-200 + e^0)) = 200")


@pytest.mark.parametrize("seed", range(20))
def test_eq5_every_anchor_has_n_negatives_and_never_itself(seed):
    """(Eq. 5) "we sample N non-matching features": N different ones for each anchor, whether or not its position was
    drawn. Its own position in x is its positive; as a negative it would cancel it. The generator alone decides, so that
    a resumed run goes on as before."""
    torch.manual_seed(seed)
    anchor, candidate, left_out = drawn = draw_positions(20, 8, 5, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed + 1)
    again = draw_positions(20, 8, 5, torch.Generator().manual_seed(seed))
    assert all(map(torch.equal, drawn, again)), "the global random state leaked into the positions"
    assert len(set(anchor.tolist())) == 8
    for a, position in enumerate(anchor.tolist()):
        used = candidate[~left_out[a]].tolist()
        assert len(set(used)) == len(used) == 5 and position not in used, f"the negatives of {position} are {used}"


def test_eq5_a_small_map_has_fewer_anchors_and_negatives():
    """(Eq. 5) 4 positions: 4 anchors, and the 3 others as negatives of each."""
    anchor, _, left_out = draw_positions(4, 256, 128, torch.Generator().manual_seed(0))
    assert sorted(anchor.tolist()) == [0, 1, 2, 3], "every position of a map of 4 should be an anchor, once"
    assert (~left_out).sum(dim=1).tolist() == [3, 3, 3, 3], "each anchor should have the other three as negatives"


@pytest.fixture(scope="module")
def small_features():
    """A sixteenth of VGG-19's channels, random weights, vectors of 8 numbers."""
    torch.manual_seed(0)  # the projections are drawn from the global state
    return ContrastiveFeatures("random", vgg_share=1 / 16, width=8)


def pictures(seed, count=2):
    """(count, 3, 32, 32) in [-1, 1]: squares of 4x4 pixels, each channel on or off at random."""
    squares = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).round()
    return F.interpolate(squares, scale_factor=4) * 2 - 1


def loops_eq5_over_scales(features, fake, real, generator, anchors, negatives, tau, reduction):
    """L_NCE (Eq. 5): v from the generated picture, v+ from the same place in the real one, v- from other places there.
    "sum": over anchors and scales; "mean": each scale's mean over its anchors."""
    total = 0.0
    for scale, (h_g, h_x) in enumerate(zip(features(fake), features(real))):
        anchor, candidate, left_out = draw_positions(h_g[0, 0].numel(), anchors, negatives, generator)
        v, v_pos, v_neg = (features.project(scale, *at) for at in ((h_g, anchor), (h_x, anchor), (h_x, candidate)))
        L_NCE = loops_eq5(v, v_pos, v_neg, left_out, tau)
        total += L_NCE if reduction == "sum" else L_NCE / len(anchor)
    return total


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_eq5_contrastive_loss_is_the_papers_sum_over_scales(reduction, small_features):
    """(Eq. 5) 32x32 pictures have maps of 8x8, 4x4 and 2x2: 7 anchors where there is room, and then all 4."""
    case = small_features, pictures(2), pictures(1)
    options = dict(anchors=7, negatives=5, tau=0.4, reduction=reduction)
    found = contrastive_loss(*case, torch.Generator().manual_seed(1), **options)
    expected = loops_eq5_over_scales(*case, torch.Generator().manual_seed(1), **options)
    assert_is(found.detach(), expected, "the contrastive loss is not Eq. 5 at every scale", rtol=1e-5, atol=0)


# ----------------------------------------------------------------------------------------- L_Div, diversity

def two_pairs():
    """features (2, 3, 2, 3) and z (2, 4) of two pairs: the second pair's features are far apart."""
    random = torch.Generator().manual_seed(0)
    features_1, features_2 = torch.randn(2, 2, 3, 2, 3, generator=random).unbind()
    z_1, z_2 = torch.randn(2, 2, 4, generator=random).unbind()
    features_2 = features_1 + torch.tensor([0.2, 50.0]).view(2, 1, 1, 1) * features_2
    return features_1, features_2, z_1, z_2


def loops_eq6(features_1, features_2, z_1, z_2, tau_div):
    """The hinge of (Eq. 6) for each pair. Its L1 norms are means here: the paper's ratio times d_z / (C_f H W)."""
    hinges = []
    for b in range(len(z_1)):
        apart = sum(abs(p - q) for p, q in zip(features_1[b].flatten().tolist(), features_2[b].flatten().tolist()))
        z_apart = sum(abs(p - q) for p, q in zip(z_1[b].tolist(), z_2[b].tolist()))
        hinges.append(max(0.0, tau_div - apart / z_apart * len(z_1[b]) / features_1[b].numel()))
    return hinges


def test_eq6_diversity_loss_is_the_papers_hinge():
    """(Eq. 6) by loops, the mean over pairs."""
    hinges = loops_eq6(*two_pairs(), tau_div=1.0)
    assert hinges[0] > 0 and hinges[1] == 0, "this test wants one pair on each side of the hinge"
    assert_is(diversity_loss(*two_pairs(), 1.0), sum(hinges) / 2, "L_Div is not the mean of Eq. 6 over the pairs")


def test_eq6_by_hand():
    """(Eq. 6) Features 0.5 apart everywhere, z 2 apart everywhere, tau_div 1: 1 - 0.5 / 2 = 0.75."""
    zeros, z = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4)
    assert_is(diversity_loss(zeros, zeros + 0.5, z, z - 2), 0.75, "1 - 0.5 / 2 was expected")


def test_eq6_pushes_features_apart_up_to_tau_div():
    """(Eq. 6) A step against the gradient makes the two pictures of a pair that is too similar differ more. "A cutoff
    threshold": beyond it the gradient is zero."""
    features_1, features_2, z_1, z_2 = two_pairs()
    features_2.requires_grad_()
    diversity_loss(features_1, features_2, z_1, z_2, tau_div=1.0).backward()
    assert features_2.grad[0].all() and not features_2.grad[1].any(), "the first pair must be pushed, and only it"
    before, after = ((features_1 - moved)[0].abs().mean() for moved in (features_2, features_2 - features_2.grad))
    assert after > before, "the diversity loss pulls the two pictures together instead of apart"


# ------------------------------------------------------------ what the two networks minimise (Sec. 3.3, train.py)

def one_step(**changes):
    """G, D, a batch of four pictures, alpha and the options of a step; weights unlike 1 tell the terms apart."""
    args = dict(lambda_gan=0.7, lambda_c=3.0, lambda_d=5.0, gamma=1.5, label_smoothing=0.2, tau=0.4, anchors=7,
                negatives=5, tau_div=2.0, diversity_every=2, diversity_of="features", reduction="sum")
    batch = {"real": pictures(1, 4), "label_map": label_maps(4, 32, 32), "z_1": noise(1, 4), "z_2": noise(2, 4),
             "offsets": torch.rand(4, 2, 32, 32, generator=torch.Generator().manual_seed(3))}
    G, D, alpha = tiny_generator(2, cross=0.7, own=0.7), small_discriminator().eval(), torch.tensor([0, 0.5, 1, 2, 3])
    return G, D, batch, alpha, SimpleNamespace(**{**args, **changes})


@pytest.mark.parametrize("reduction, diversity_of", [("sum", "features"), ("mean", "picture")])
def test_eq4_eq5_eq6_are_what_the_generator_minimises(reduction, diversity_of, small_features):
    """Sec. 3.3: lambda_GAN L_G + lambda_C L_NCE + lambda_D L_Div by loops. L_G is divided by H*W, L_NCE is the sum over
    anchors, divided by H*W, or their mean. Pictures 0 and 2, every second one, are drawn with a second z for L_Div."""
    G, D, batch, alpha, args = one_step(reduction=reduction, diversity_of=diversity_of)
    t, z_1, z_2, offsets = (batch[name] for name in ("label_map", "z_1", "z_2", "offsets"))
    terms, image, features, fake_features = train.generator_losses(
        G, D, small_features, batch, alpha, torch.Generator().manual_seed(1), args)
    with torch.no_grad():
        (fake, features_1), (again, features_2) = (
            G(t[i], z[i], offsets[i], return_features=True) for i, z in (([0, 1, 2, 3], z_1), ([0, 2], z_2)))
        assert_is(image, torch.cat([fake, again]), "the pictures, then those of the second z", atol=1e-5, rtol=0)
        assert_is(features, torch.cat([features_1, features_2]), "G^f of them", atol=1e-5, rtol=1e-5)
        for found, expected in zip(fake_features, D.features(image[:4]), strict=True):
            assert torch.equal(found, expected), "D's step needs the backbone's features of the first B pictures"
        of_1, of_2 = (features_1, features_2) if diversity_of == "features" else (fake, again)
        hinges = loops_eq6(of_1[[0, 2]], of_2, z_1[[0, 2]], z_2[[0, 2]], tau_div=2.0)
        L_NCE = loops_eq5_over_scales(small_features, fake, batch["real"], torch.Generator().manual_seed(1), 7, 5, 0.4,
                                      reduction)
        expected = {"gan": 0.7 * loops_eq4(D(fake), t, alpha, gamma=1.5) / (32 * 32), "contrastive":
                    3.0 * (L_NCE / (32 * 32) if reduction == "sum" else L_NCE), "diversity": 5.0 * sum(hinges) / 2}
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert_is(term.detach(), expected[name], f"the term {name}", rtol=1e-4, atol=0)
    sum(terms.values()).backward()
    assert not without_gradient(G)


def test_a_term_of_weight_0_is_left_out():
    """And what it alone needs: VGG, and the second z. There may be no offsets, either."""
    _, D, batch, alpha, args = one_step(lambda_c=0.0, lambda_d=0.0)
    del batch["offsets"]
    terms, image, _, _ = train.generator_losses(tiny_generator(), D, None, batch, alpha, torch.Generator(), args)
    assert set(terms) == {"gan"} and len(image) == 4


def test_eq3_is_what_the_discriminator_minimises():
    """(Eq. 3) by loops, divided by H*W; the backbone's features of the generated pictures come from G's step."""
    _, D, batch, alpha, args = one_step()
    fake = pictures(2, 4)
    with torch.no_grad():
        fake_features = D.features(fake.flip(0))  # of other pictures, to see that they are used
        terms, real_logits, fake_logits = train.discriminator_losses(D, batch, fake, fake_features, alpha, args)
        assert torch.equal(real_logits, D(batch["real"])) and torch.equal(fake_logits, D(fake, fake_features))
    L_D = loops_eq3(real_logits, fake_logits, batch["label_map"], alpha, gamma=1.5, epsilon=0.2)
    assert terms.keys() == {"pixels"}
    assert_is(terms["pixels"], L_D / (32 * 32), "what D minimises is not Eq. 3 over H*W")


# ------------------------------------------------------------------------- VGG features and their projection

def nce(features, fake, real):
    """Eq. 5 over the three scales, for 16 anchors of 8 negatives."""
    return contrastive_loss(features, fake, real, torch.Generator().manual_seed(0), 16, 8)


def test_contrastive_loss_prefers_the_right_picture(small_features):
    """Identical pictures match patch by patch; pictures of something else do not."""
    same, other = (nce(small_features, fake, pictures(1)).item() for fake in (pictures(1), pictures(2)))
    assert same < other, f"identical pictures cost {same:.3f}, pictures of something else only {other:.3f}"


def test_contrastive_gradient_reaches_the_fake_image_at_every_scale_and_the_real_one_never(small_features):
    """VGG is frozen but not cut off: the generator learns through it. The real side is the target: it is detached."""
    maps, fake, real = [], pictures(2).requires_grad_(), pictures(1).requires_grad_()
    hook = small_features.register_forward_hook(lambda _, args, output: maps.append(output))
    loss = nce(small_features, fake, real)
    hook.remove()
    gradients = torch.autograd.grad(loss, maps[0], retain_graph=True)     # of H_g at each scale
    for scale, (h_g, gradient) in enumerate(zip(maps[0], gradients)):
        gradient, = torch.autograd.grad(h_g, fake, gradient, retain_graph=True)
        assert gradient.any(), f"no gradient reaches the generated picture from scale {scale}"
    loss.backward()
    assert real.grad is None, "the real picture received a gradient"


@pytest.mark.parametrize("autocast", [False, True])
def test_contrastive_gradient_trains_the_projections_and_not_vgg(small_features, autocast):
    """The convolutions and MLPs learn, VGG does not.

    TRAP: autocast keeps its bfloat16 copies of the weights. Up to torch 2.6 at least (2.15 no longer does so)
    a copy first made under no_grad is used again later, and the layer stops learning without a word.
    """
    small_features.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = nce(small_features, pictures(2), pictures(1))
    loss.backward()
    vgg = dict(small_features.backbone.named_parameters())
    assert without_gradient(small_features) == [f"backbone.{name}" for name in vgg]
    assert not any(p.requires_grad or p.grad is not None for p in vgg.values()), "VGG is not frozen"
    assert not any(module.training for module in small_features.backbone.modules()), "VGG is frozen, train() or not"
    assert small_features.mlps.training, "the projections are trained and follow train()"


def test_projection_picks_the_positions_asked_for_and_gives_vectors_of_length_1(small_features):
    """Position p of a map is row p // W, column p % W; a change elsewhere does not matter. Eq. 5 with tau near 0.3
    presumes products between -1 and 1."""
    for scale, feature_map in enumerate(small_features(pictures(1))):     # (2, 8, 8, 8), (2, 8, 4, 4), (2, 8, 2, 2)
        changed, last = feature_map.clone(), feature_map.shape[3] - 1
        changed[:, :, 1, last] += 1.0                                     # position 1 * W + W - 1
        everywhere = torch.arange(feature_map[0, 0].numel())
        before, after = (small_features.project(scale, m, everywhere) for m in (feature_map, changed))
        moved = (before != after).any(dim=2).all(dim=0).nonzero().flatten().tolist()
        assert moved == [2 * last + 1], f"scale {scale}: the map was changed at {2 * last + 1}, the vectors at {moved}"
        v = small_features.project(scale, feature_map, torch.tensor([0, 3]))
        assert v.shape == (2, 2, 8), f"scale {scale}: expected (B, positions, width) vectors, got {tuple(v.shape)}"
        assert_is(v.norm(dim=2), torch.ones(2, 2), f"vectors of scale {scale} are not of length 1")


def test_vgg_taps_are_relu3_1_relu4_1_and_relu5_1_with_the_papers_strides():
    """Sec. 3.3: "at feature scales 1/4, 1/8, 1/16"; here of a 32x64 picture. VGG-19 has 2, 2, 4, 4, 4 convolutions a
    block: the taps are the ReLUs after number 5, 9 and 13, of 256, 512 and 512 channels."""
    features, seen = ContrastiveFeatures("random"), []
    for conv in features.convs:
        conv.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    maps = features(torch.zeros(1, 3, 32, 64))
    assert seen == [(1, 256, 8, 16), (1, 512, 4, 8), (1, 512, 2, 4)], f"the taps have shapes {seen}"
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 16), (4, 8), (2, 4)], "the projected maps keep the strides"
    for tap, number in zip(VGG_TAPS, (5, 9, 13)):
        layers = features.backbone[:tap + 1]
        assert isinstance(layers[-1], nn.ReLU), f"module {tap} is {layers[-1]}, expected a ReLU"
        convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers)
        assert convolutions == number, f"module {tap} follows convolution {convolutions}, expected {number}"
