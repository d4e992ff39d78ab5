"""Eq. 3 to 6 and what surrounds them, against plain Python loops written from the paper (Sec. 3.3).

    python -m pytest tests/test_losses.py          (from the repository root; a few seconds on a CPU)

Oracle: the equations as printed, recomputed on tiny tensors (B=2, C=3, H=2, W=3) with nothing but Python
numbers, and a few values that fit on the back of an envelope. No weights, no network. Where an equation's
test fails, read the equation in the paper first, then losses.py.

Labels are 0..C-1; the logits have C + 1 channels and "fake" is the last of them, index C.
"""
import math

import pytest
import torch
import torch.nn.functional as F
import torchvision

from losses import (VGG_TAPS, ContrastiveFeatures, class_weights, contrastive_loss, discriminator_loss,
                    diversity_loss, draw_positions, focal_log, generator_loss, info_nce, objective)

B, C, H, W = 2, 3, 2, 3


def random_case(seed=0):
    """Logits for real and generated pictures (B, C + 1, H, W), labels (B, H, W), one alpha a class (C,)."""
    random = torch.Generator().manual_seed(seed)
    real_logits = 2 * torch.randn(B, C + 1, H, W, generator=random)
    fake_logits = 2 * torch.randn(B, C + 1, H, W, generator=random)
    label_map = torch.randint(C, (B, H, W), generator=random)
    return real_logits, fake_logits, label_map, torch.tensor([0.5, 2.0, 3.0])


def probability(logits, b, k, y, x):
    """p of output k at one pixel: the softmax over the C + 1 outputs, as a Python number."""
    e = [math.exp(logits[b, j, y, x].item()) for j in range(C + 1)]
    return e[k] / sum(e)


def focal(p, gamma):
    return (1 - p) ** gamma * math.log(p)


def assert_is(actual, expected, what, **tolerance):
    """Like assert_close, with a sentence to start from when it fails."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what}\n{text}")


# ------------------------------------------------------------------------------ L_D, the discriminator's

def loops_eq3(real_logits, fake_logits, label_map, alpha, gamma, epsilon):
    """L_D (Eq. 3), one pixel at a time; epsilon goes in equal parts to the C outputs that are not t."""
    L_D = 0.0
    for b in range(B):
        for y in range(H):
            for x in range(W):
                t = label_map[b, y, x].item()
                for k in range(C + 1):
                    target = 1 - epsilon if k == t else epsilon / C
                    L_D -= alpha[t].item() * target * focal(probability(real_logits, b, k, y, x), gamma)
                L_D -= focal(probability(fake_logits, b, C, y, x), gamma)
    return L_D / B  # E: the mean over images


def test_eq3_discriminator_loss_is_the_papers_sum():
    """(Eq. 3) with gamma 2 and no smoothing: sums over classes and pixels, mean over images."""
    case = random_case()
    assert_is(discriminator_loss(*case, gamma=2.0, smoothing=0.0), loops_eq3(*case, gamma=2.0, epsilon=0.0),
              "L_D is not the sum of Eq. 3")


def test_eq3_label_smoothing_spreads_epsilon_over_the_other_outputs():
    """(Eq. 3) with targets 1 - epsilon: epsilon / C for each other
    output, weighted by the true label's alpha."""
    case = random_case()
    assert_is(discriminator_loss(*case, gamma=2.0, smoothing=0.1), loops_eq3(*case, gamma=2.0, epsilon=0.1),
              "each of the other C outputs gets epsilon / C, times the alpha of the true label")


def test_eq3_smoothing_is_one_sided():
    """(Eq. 3) "one-sided label smoothing": the generated pixels keep their target of 1."""
    _, fake_logits, label_map, _ = random_case()
    only_fake_counts = torch.zeros(C)  # alpha 0 removes the real term altogether
    losses = [discriminator_loss(torch.zeros_like(fake_logits), fake_logits, label_map, only_fake_counts,
                                 smoothing=epsilon) for epsilon in (0.0, 0.3)]
    assert losses[0] == losses[1], (
        "smoothing changed the loss of generated pixels; it belongs to the real ones")


def test_eq3_gamma_0_is_the_weighted_cross_entropy():
    """(Eq. 3) "The standard cross-entropy is recovered for gamma = 0". Oracle: torch's cross-entropy."""
    real_logits, fake_logits, label_map, alpha = random_case()
    weight = torch.cat([alpha, torch.ones(1)])
    expected = (F.cross_entropy(real_logits, label_map, weight, reduction="sum")
                + F.cross_entropy(fake_logits, torch.full_like(label_map, C), reduction="sum")) / B
    L_D = discriminator_loss(real_logits, fake_logits, label_map, alpha, gamma=0.0, smoothing=0.0)
    assert_is(L_D, expected, "with gamma 0, Eq. 3 must be OASIS's weighted cross-entropy")


def test_eq3_a_clueless_discriminator_pays_a_number_known_by_hand():
    """(Eq. 3) All logits 0: p = 1/4 everywhere, so each pixel
    costs (3/4)^2 ln 4, real and generated alike."""
    logits = torch.zeros(B, C + 1, H, W)
    label_map = torch.zeros(B, H, W, dtype=torch.long)
    L_D = discriminator_loss(logits, logits, label_map, torch.ones(C), smoothing=0.0)
    assert_is(L_D, 2 * (H * W) * 0.5625 * math.log(4), "12 pixels of (3/4)^2 ln 4 = 9.357 were expected")


def test_eq3_fake_is_the_last_logit():
    """(Eq. 3) "the label index C + 1 is used for the fake class":
    index C from zero. OASIS's code has index 0."""
    real_logits, _, label_map, alpha = random_case()
    losses = []
    for k in range(C + 1):
        sure_of_k = torch.zeros(B, C + 1, H, W)
        sure_of_k[:, k] = 20.0
        losses.append(discriminator_loss(real_logits, sure_of_k, label_map, alpha).item())
    assert losses.index(min(losses)) == C, (
        f"calling generated pixels k costs {losses}: the last must be cheapest")


def test_eq3_a_perfect_discriminator_pays_nothing():
    """(Eq. 3) Real pixels surely of their class and generated ones surely fake: the loss is 0."""
    _, _, label_map, alpha = random_case()
    real_logits = 50 * F.one_hot(label_map, C + 1).permute(0, 3, 1, 2).float()
    fake_logits = torch.zeros(B, C + 1, H, W)
    fake_logits[:, C] = 50.0
    assert_is(discriminator_loss(real_logits, fake_logits, label_map, alpha, smoothing=0.0), 0.0,
              "nothing is wrong with these answers, yet they cost something")


def test_eq3_unknown_pixels_count_as_fake_but_not_as_real():
    """(Eq. 3) alpha of the unknown class is 0; the second sum runs over all pixels and has no alpha."""
    real_logits, fake_logits, label_map, _ = random_case()
    label_map[:], alpha = 0, torch.tensor([0.0, 1.0, 1.0])  # every pixel is of class 0, the unknown one
    real_logits.requires_grad_(), fake_logits.requires_grad_()
    discriminator_loss(real_logits, fake_logits, label_map, alpha).backward()
    assert not real_logits.grad.any(), "unknown pixels of a real image must not train D"
    assert fake_logits.grad[:, C].all(), "every generated pixel must train D, whatever its label"


# ---------------------------------------------------------------------------------- L_G, the generator's

def test_eq4_generator_loss_is_the_papers_sum():
    """(Eq. 4) The same focal sum as in Eq. 3, on the generated picture, with no smoothing."""
    _, fake_logits, label_map, alpha = random_case()
    L_G = 0.0
    for b in range(B):
        for y in range(H):
            for x in range(W):
                for c in range(C):
                    t_ic = 1 if label_map[b, y, x].item() == c else 0
                    L_G -= alpha[c].item() * t_ic * focal(probability(fake_logits, b, c, y, x), 2.0)
    assert_is(generator_loss(fake_logits, label_map, alpha, gamma=2.0), L_G / B,
              "L_G is not the sum of Eq. 4")


def test_eq4_unknown_pixels_do_not_train_the_generator():
    """(Eq. 4) alpha 0 silences the unknown class exactly, and only it."""
    _, fake_logits, label_map, _ = random_case()
    fake_logits.requires_grad_()
    generator_loss(fake_logits, label_map, torch.tensor([0.0, 1.0, 1.0])).backward()
    moved = fake_logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(moved, label_map != 0), (
        "the gradient must be zero at pixels of class 0, and only there")


@pytest.mark.parametrize("loss", [discriminator_loss, generator_loss])
def test_eq3_eq4_are_sums_over_pixels_and_means_over_images(loss):
    """(Eq. 3, 4) Twice the same batch: the same loss. Pictures twice as wide: twice the loss."""
    *logits, label_map, alpha = random_case()
    logits = logits[-1:] if loss is generator_loss else logits
    once = loss(*logits, label_map, alpha)
    more_images = loss(*(l.repeat(2, 1, 1, 1) for l in logits), label_map.repeat(2, 1, 1), alpha)
    wider = loss(*(l.repeat(1, 1, 1, 2) for l in logits), label_map.repeat(1, 1, 2), alpha)
    assert_is(more_images, once, "E is the mean over images: repeating them must not change the loss")
    assert_is(wider, 2 * once, "the sums run over all H x W pixels: twice as many must cost twice as much")


# ------------------------------------------------------------------------- Eq. 3 and 4 at the extremes

@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gap", [69.1, 200.0, 10_000.0])
def test_eq3_eq4_stay_finite_when_the_right_class_is_hopeless(gamma, gap):
    """(Eq. 3, 4) p = e^-69.1 = 1e-30 and far less: -log p is the gap itself, and its gradient -1 a pixel."""
    logits = torch.zeros(1, 2, 1, 1)  # one pixel, one class, and "fake"
    logits[:, 1] = gap
    logits.requires_grad_()
    loss = generator_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1), gamma)
    loss.backward()
    assert_is(loss.detach(), gap, "(1 - p)^gamma is 1 here, so that the loss is -log p")
    assert_is(logits.grad.flatten(), [-1.0, 1.0],
              "the gradient must not vanish where the answer is most wrong")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gap", [0.0, 15.0, 69.1, 200.0, 10_000.0])
def test_eq3_values_and_gradients_are_finite_at_p_0_and_at_p_1(gamma, gap):
    """(Eq. 3) Some pixels surely right, some surely wrong, every output smoothed: no inf, no nan anywhere."""
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])                             # (pixel, output)
    real_logits = (gap * signs).T.reshape(1, 2, 1, 2).clone().requires_grad_()   # class 0 or "fake"
    fake_logits = (gap * signs).T.reshape(1, 2, 1, 2).clone().requires_grad_()
    label_map = torch.zeros(1, 1, 2, dtype=torch.long)
    loss = discriminator_loss(real_logits, fake_logits, label_map, torch.ones(1), gamma)
    loss.backward()
    assert loss.isfinite(), f"the loss is {loss.item()} at logits {gap} apart"
    for name, logits in (("real", real_logits), ("fake", fake_logits)):
        assert logits.grad.isfinite().all(), (
            f"gradient of the {name} logits: {logits.grad.flatten().tolist()}")


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
    log_p = torch.tensor([-1e-9])
    assert_is(focal_log(log_p, gamma), [1e-9 ** gamma * -1e-9],
              "(1 - p)^gamma log p for a nearly certain answer",
              rtol=1e-4, atol=0)


def test_every_loss_is_float32_under_autocast():
    """bfloat16 keeps 8 bits: the losses must come out as without autocast, to float32's precision."""
    real_logits, fake_logits, label_map, alpha = random_case()
    random = torch.Generator().manual_seed(1)
    v, v_pos, v_neg = (F.normalize(torch.randn(2, n, 8, generator=random), dim=2) for n in (4, 4, 5))
    left_out = torch.eye(4, 5, dtype=torch.bool)
    f_1, f_2 = torch.randn(2, 2, 3, 2, 3, generator=random)
    z_1, z_2 = torch.randn(2, 2, 4, generator=random)
    losses = {"Eq. 3": lambda: discriminator_loss(real_logits, fake_logits, label_map, alpha),
              "Eq. 4": lambda: generator_loss(fake_logits, label_map, alpha),
              "Eq. 5": lambda: info_nce(v, v_pos, v_neg, left_out),
              "Eq. 6": lambda: diversity_loss(f_1, f_2, z_1, z_2, tau_div=3.0)}
    for name, loss in losses.items():
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss()
        assert inside.dtype == torch.float32, f"{name} is {inside.dtype} under autocast"
        assert_is(inside, loss(), f"{name} loses precision under autocast", rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", [discriminator_loss, generator_loss])
def test_bfloat16_logits_are_computed_with_in_float32(loss):
    """Networks under autocast return bfloat16; the softmax and
    the power are taken in float32 all the same."""
    *logits, label_map, alpha = random_case()
    logits = [l.bfloat16() for l in (logits[-1:] if loss is generator_loss else logits)]
    value = loss(*logits, label_map, alpha)
    assert value.dtype == torch.float32, f"the loss of bfloat16 logits is {value.dtype}"
    expected = loss(*(l.float() for l in logits), label_map, alpha)
    assert_is(value, expected, "precision was lost", rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------------ class weights

def test_class_weights_four_classes_one_pixel_each():
    """B*H*W / (K n_c) by hand: 4 pixels, K = 3 known classes of one pixel each; class 0 is unknown."""
    alpha = class_weights(torch.tensor([1, 1, 1, 1]), unknown=0)
    assert_is(alpha, [0, 4 / 3, 4 / 3, 4 / 3],
              "4 pixels / (3 known classes x 1 pixel) = 4/3, and 0 for the unknown")


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


def test_class_weights_unknown_pixels_still_count_among_the_pixels():
    """6 unknown pixels of 12: alpha = 12 / (2 * n_c), not 6 / (2 * n_c): "the mean is over all pixels"."""
    assert_is(class_weights(torch.tensor([6, 2, 4]), unknown=0), [0, 3.0, 1.5],
              "the numerator is every pixel of the batch, the unknown ones included")


def test_class_weights_absent_class_gets_0_and_does_not_count_in_K():
    """n = (4, 0, 8): 12 / (2 * 4), 0 and 12 / (2 * 8)."""
    assert_is(class_weights(torch.tensor([4, 0, 8])), [1.5, 0, 0.75],
              "K counts the classes present, two of them")


def test_class_weights_of_a_batch_of_unknown_pixels_are_zeros():
    """K = 0: nothing to learn from these labels, and no division by zero."""
    assert_is(class_weights(torch.tensor([9, 0, 0]), unknown=0), [0, 0, 0],
              "zeros, not nan or inf, were expected")


# ------------------------------------------------------------------------------------- L_NCE, contrastive

def test_eq5_info_nce_is_the_papers_sum():
    """(Eq. 5) anchor by anchor; a vector that is left out of an anchor's negatives is not in its sum."""
    random, A, M, tau = torch.Generator().manual_seed(0), 3, 4, 0.3
    v, v_pos, v_neg = (F.normalize(torch.randn(B, n, 5, generator=random), dim=2) for n in (A, A, M))
    left_out = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    total = 0.0
    for b in range(B):
        for a in range(A):
            dot = lambda u: sum(p * q for p, q in zip(v[b, a].tolist(), u.tolist()))
            positive = math.exp(dot(v_pos[b, a]) / tau)
            negatives = sum(math.exp(dot(v_neg[b, n]) / tau) for n in range(M) if not left_out[a, n])
            total += -math.log(positive / (positive + negatives))
    assert_is(info_nce(v, v_pos, v_neg, left_out, tau), total / B,
              "L_NCE is not Eq. 5, summed over the anchors")


def test_eq5_indistinguishable_patches_cost_log_of_their_number():
    """(Eq. 5) All vectors equal: the positive is one of N + 1 = 8 alike, so every anchor costs ln 8."""
    same = torch.ones(2, 5, 4) / 2
    loss = info_nce(same, same, same[:, :1].expand(2, 7, 4), torch.zeros(5, 7, dtype=torch.bool))
    assert_is(loss, 5 * math.log(8), "5 anchors of ln 8 = 2.079 each")


def test_eq5_small_tau_does_not_overflow():
    """(Eq. 5) e^(1 / 0.005) = e^200 is beyond float32; the loss of a hopeless anchor is 200 all the same."""
    v = torch.tensor([[[1.0, 0.0]]])
    loss = info_nce(v, -v, torch.tensor([[[0.0, 1.0]]]), torch.zeros(1, 1, dtype=torch.bool), tau=0.005)
    assert_is(loss, 200.0, "-log(e^-200 / (e^-200 + e^0)) = 200")


@pytest.mark.parametrize("seed", range(20))
def test_eq5_every_anchor_has_exactly_n_negatives(seed):
    """(Eq. 5) "we sample N non-matching features": N for each
    anchor, whether or not its position was drawn."""
    _, _, left_out = draw_positions(20, anchors=8, negatives=5, generator=torch.Generator().manual_seed(seed))
    counts = (~left_out).sum(dim=1).tolist()
    assert counts == [5] * 8, f"the 8 anchors have {counts} negatives, 5 each were asked for"


@pytest.mark.parametrize("seed", range(20))
def test_eq5_no_anchor_is_its_own_negative(seed):
    """(Eq. 5) The anchor's own position in x is its positive; as a negative it would cancel it."""
    anchor, candidate, left_out = draw_positions(20, 8, 5, torch.Generator().manual_seed(seed))
    for a, position in enumerate(anchor.tolist()):
        used = [c for c, out in zip(candidate.tolist(), left_out[a].tolist()) if not out]
        assert position not in used, f"the anchor at {position} has itself among its negatives {used}"
        assert len(set(used)) == len(used), f"the anchor at {position} has a negative twice: {used}"


def test_eq5_a_small_map_has_fewer_anchors_and_negatives():
    """(Eq. 5) 4 positions: 4 anchors, and the 3 others as negatives of each."""
    anchor, _, left_out = draw_positions(4, 256, 128, torch.Generator().manual_seed(0))
    assert sorted(anchor.tolist()) == [0, 1, 2, 3], "every position of a map of 4 should be an anchor, once"
    assert (~left_out).sum(dim=1).tolist() == [3, 3, 3, 3], (
        "each anchor should have the other three as negatives")


def test_eq5_positions_come_from_the_generator_alone():
    """The same torch.Generator state gives the same positions, so that a resumed run goes on as before."""
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        draws.append(draw_positions(50, 8, 5, torch.Generator().manual_seed(3)))
    for first, second in zip(*draws):
        assert torch.equal(first, second), "the global random state leaked into the positions"


# ----------------------------------------------------------------------------------------- L_Div, diversity

def two_pairs():
    """features (2, 3, 2, 3) and z (2, 4) of two pairs: the second pair's features are far apart."""
    random = torch.Generator().manual_seed(0)
    features_1, features_2 = torch.randn(2, 2, 3, 2, 3, generator=random).unbind()
    z_1, z_2 = torch.randn(2, 2, 4, generator=random).unbind()
    features_2 = features_1 + torch.tensor([0.2, 50.0]).view(2, 1, 1, 1) * features_2
    return features_1, features_2, z_1, z_2


def test_eq6_diversity_loss_is_the_papers_hinge():
    """(Eq. 6) with L1 norms by loops. Here they are means, so that
    the paper's ratio is times d_z / (C_f H W)."""
    features_1, features_2, z_1, z_2 = case = two_pairs()
    tau_div, hinges = 1.0, []
    for b in range(2):
        apart = sum(abs(p - q) for p, q in zip(features_1[b].flatten(), features_2[b].flatten())).item()
        z_apart = sum(abs(p - q) for p, q in zip(z_1[b], z_2[b])).item()
        hinges.append(max(0.0, tau_div - apart / z_apart * 4 / (3 * 2 * 3)))
    assert hinges[0] > 0 and hinges[1] == 0, "this test wants one pair on each side of the hinge"
    assert_is(diversity_loss(*case, tau_div), sum(hinges) / 2,
              "L_Div is not the mean of Eq. 6 over the pairs")


def test_eq6_by_hand():
    """(Eq. 6) Features 0.5 apart everywhere, z 2 apart everywhere, tau_div 1: 1 - 0.5 / 2 = 0.75."""
    zeros, z = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4)
    assert_is(diversity_loss(zeros, zeros + 0.5, z, z - 2), 0.75, "1 - 0.5 / 2 was expected")


def test_eq6_pairs_beyond_tau_div_are_left_alone():
    """(Eq. 6) "a cutoff threshold": different enough is enough, the gradient there is zero."""
    features_1, features_2, z_1, z_2 = two_pairs()
    features_2.requires_grad_()
    diversity_loss(features_1, features_2, z_1, z_2, tau_div=1.0).backward()
    assert features_2.grad[0].all(), "the pair that is too similar must be pushed apart"
    assert not features_2.grad[1].any(), "the pair beyond tau_div must not be pushed any further"


def test_eq6_the_gradient_pushes_features_apart():
    """(Eq. 6) A step against the gradient lowers the loss by making the two pictures differ more."""
    features_1, features_2, z_1, z_2 = two_pairs()
    features_2.requires_grad_()
    diversity_loss(features_1, features_2, z_1, z_2).backward()
    before = (features_1 - features_2)[0].abs().mean()
    after = (features_1 - (features_2 - features_2.grad))[0].abs().mean()
    assert after > before, "the diversity loss pulls the two pictures together instead of apart"


# -------------------------------------------------------------------------------- the weighted sum (Sec. 3.3)

def parts(reduction):
    """The terms for L_G = 12, L_NCE = 4 and 8 on two scales of 4 and 2 anchors, L_Div = 0.5, 4 pixels."""
    terms = objective(torch.tensor(12.0), [torch.tensor(4.0), torch.tensor(8.0)], torch.tensor(0.5),
                      pixels=4, anchors=[4, 2], reduction=reduction)
    return {name: term.item() for name, term in terms.items()}


def test_objective_as_the_paper_writes_its_sums():
    """"sum": everything but Eq. 6 over H*W. 1 * 12 / 4 = 3, 100 * (4 + 8) / 4 = 300, 10 * 0.5 = 5."""
    assert parts("sum") == {"gan": 3.0, "contrastive": 300.0, "diversity": 5.0}


def test_objective_with_a_mean_for_every_sum():
    """"mean": Eq. 5 over its own anchors. 1 * 12 / 4 = 3, 100 * (4 / 4 + 8 / 2) = 500, 10 * 0.5 = 5."""
    assert parts("mean") == {"gan": 3.0, "contrastive": 500.0, "diversity": 5.0}


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_objective_without_contrastive_scales_still_gives_tensors(reduction):
    """lambda_C = 0: train.py passes no scales and asks each term for its gradient and value all the same."""
    terms = objective(torch.tensor(12.0), [], torch.tensor(0.5), 4, [], lambda_c=0.0, reduction=reduction)
    for name, term in terms.items():
        assert isinstance(term, torch.Tensor), (
            f"the term {name} is a {type(term).__name__}, expected a tensor")


# ------------------------------------------------------------------------- VGG features and their projection

@pytest.fixture(scope="module")
def small_features():
    """A sixteenth of VGG-19's channels, random weights, vectors of 8 numbers."""
    torch.manual_seed(0)  # the projections are drawn from the global state
    return ContrastiveFeatures("random", vgg_width=1 / 16, width=8)


def pictures(seed):
    """(2, 3, 32, 32) in [-1, 1]: squares of 4x4 pixels, each channel on or off at random."""
    squares = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).round()
    return F.interpolate(squares, scale_factor=4) * 2 - 1


def nce(features, fake, real, seed=0):
    """Eq. 5 at each scale, and the number of anchors, for 16 anchors of 8 negatives."""
    return contrastive_loss(features, fake, real, torch.Generator().manual_seed(seed), 16, 8)


def test_contrastive_loss_prefers_the_right_picture(small_features):
    """Identical pictures match patch by patch; pictures of something else do not."""
    real = pictures(1)
    same, other = (sum(nce(small_features, fake, real)[0]).item() for fake in (real, pictures(2)))
    assert same < other, f"identical pictures cost {same:.3f}, pictures of something else only {other:.3f}"


def test_contrastive_loss_reports_the_anchors_of_each_scale(small_features):
    """32x32 pictures have maps of 8x8, 4x4 and 2x2: 16 anchors where there is room, and then all 4."""
    _, anchors = nce(small_features, pictures(2), pictures(1))
    assert anchors == [16, 16, 4], (
        f"16 anchors were asked for on maps of 64, 16 and 4 positions, got {anchors}")


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_contrastive_gradient_reaches_the_fake_image_at_every_scale(small_features, scale):
    """VGG is frozen but not cut off: the generator learns through it."""
    fake = pictures(2).requires_grad_()
    scales, _ = nce(small_features, fake, pictures(1))
    gradient, = torch.autograd.grad(scales[scale], fake)
    assert gradient.abs().sum() > 0, f"no gradient reaches the generated picture from scale {scale}"


def test_contrastive_gradient_does_not_reach_the_real_image(small_features):
    """The real side is the target: it is detached, so that targets do not come to meet the prediction."""
    real = pictures(1).requires_grad_()
    scales, _ = nce(small_features, pictures(2).requires_grad_(), real)
    sum(scales).backward()
    assert real.grad is None, "the real picture received a gradient"


@pytest.mark.parametrize("autocast", [False, True])
def test_contrastive_gradient_trains_the_projections_and_not_vgg(small_features, autocast):
    """The convolutions and MLPs learn, VGG does not.

    TRAP: autocast keeps its bfloat16 copies of the weights. Up to torch 2.6 at least (2.15 no longer does so)
    a copy first made under no_grad is used again later, and the layer stops learning without a word.
    """
    small_features.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scales, _ = nce(small_features, pictures(2), pictures(1))
    sum(scales).backward()
    for name, p in small_features.named_parameters():
        if name.startswith("backbone"):
            assert p.grad is None and not p.requires_grad, f"VGG's {name} is not frozen"
        else:
            assert p.grad is not None and p.grad.any(), f"no gradient reaches {name}"


def test_projected_vectors_have_length_1(small_features):
    """Eq. 5 with tau near 0.3 presumes products between -1 and 1."""
    maps = small_features(pictures(1))
    for scale, feature_map in enumerate(maps):
        v = small_features.project(scale, feature_map, torch.tensor([0, 3]))
        assert v.shape == (2, 2, 8), (
            f"scale {scale}: expected (B, positions, width) vectors, got {tuple(v.shape)}")
        assert_is(v.norm(dim=2), torch.ones(2, 2), f"vectors of scale {scale} are not of length 1")


def test_projection_picks_the_positions_asked_for(small_features):
    """Position p of a map is row p // W, column p % W; a change elsewhere does not matter."""
    feature_map = small_features(pictures(1))[1].detach()          # (2, 8, 4, 4)
    changed = feature_map.clone()
    changed[:, :, 1, 2] += 1.0                                     # position 1 * 4 + 2 = 6
    before, after = (small_features.project(1, m, torch.arange(16)) for m in (feature_map, changed))
    moved = (before != after).any(dim=2).all(dim=0).nonzero().flatten().tolist()
    assert moved == [6], f"the map was changed at position 6, the vectors changed at {moved}"


def test_contrastive_features_keep_vgg_in_eval_mode(small_features):
    small_features.train()
    assert not any(module.training for module in small_features.backbone.modules()), (
        "VGG is frozen, train() or not")
    assert small_features.mlps.training, "the projections are trained and follow train()"


@pytest.fixture(scope="module")
def full_features():
    return ContrastiveFeatures("random")


def test_vgg_taps_have_the_papers_strides_and_vgg19s_channels(full_features):
    """Sec. 3.3: "at feature scales 1/4, 1/8, 1/16". What the three convolutions see of a 32x64 picture."""
    seen = []
    hooks = [conv.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
             for conv in full_features.convs]
    maps = full_features(torch.zeros(1, 3, 32, 64))
    for hook in hooks:
        hook.remove()
    assert seen == [(1, 256, 8, 16), (1, 512, 4, 8), (1, 512, 2, 4)], f"the taps have shapes {seen}"
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 16), (4, 8), (2, 4)], (
        "the projected maps keep the strides")


def test_vgg_taps_are_relu3_1_relu4_1_and_relu5_1(full_features):
    """VGG-19 has 2, 2, 4, 4, 4 convolutions a block: the taps are the ReLUs after number 5, 9 and 13."""
    for tap, number in zip(VGG_TAPS, (5, 9, 13)):
        layers = full_features.backbone[:tap + 1]
        assert isinstance(layers[-1], torch.nn.ReLU), f"module {tap} is {layers[-1]}, expected a ReLU"
        convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in layers)
        assert convolutions == number, f"module {tap} follows convolution {convolutions}, expected {number}"


def test_vgg_sees_imagenets_mean_and_standard_deviation(small_features):
    """A picture of value v in [-1, 1] reaches VGG as ((v + 1) / 2 - mean) / std."""
    seen = []
    hook = small_features.backbone[0].register_forward_pre_hook(
        lambda _, args: seen.append(args[0][0, :, 0, 0]))
    small_features(torch.full((1, 3, 16, 16), 0.5))
    hook.remove()
    assert_is(seen[0], [(0.75 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))],
              "0.5 in [-1, 1] is 0.75 in [0, 1], then ImageNet's normalisation")


def test_random_vgg_is_the_same_after_a_restart():
    """"random" depends on the seed argument alone, whatever was drawn before, and draws nothing itself."""
    torch.manual_seed(1)
    first = ContrastiveFeatures("random", vgg_width=1 / 16, width=8, seed=5).backbone[0].weight
    torch.manual_seed(2)
    second = ContrastiveFeatures("random", vgg_width=1 / 16, width=8, seed=5).backbone[0].weight
    third = ContrastiveFeatures("random", vgg_width=1 / 16, width=8, seed=6).backbone[0].weight
    assert torch.equal(first, second), "the same seed gave two different VGGs"
    assert not torch.equal(first, third), "another seed gave the same VGG"


def test_vgg_weights_come_from_a_file(tmp_path):
    """A state dict as torchvision saves it for vgg19: "features.0.weight", ...; the classifier is not used.

    Every tensor has one value of its own and, expanded, takes up no room on disk.
    """
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    state = {f"features.{name}": torch.tensor(i / 100).expand(p.shape)
             for i, (name, p) in enumerate(layers.state_dict().items())}
    state["classifier.0.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "vgg19.pt")
    features = ContrastiveFeatures(str(tmp_path / "vgg19.pt"))
    for name, p in features.backbone.state_dict().items():
        assert (p == state[f"features.{name}"]).all(), f"{name} is not what the file holds"


@pytest.mark.parametrize("content", ["another network", "a list", "text"])
def test_a_file_that_is_no_vgg19_raises_value_error(tmp_path, content):
    """One line that names the file and the network it should hold."""
    file = tmp_path / "vgg19.pt"
    if content == "text":
        file.write_text("hello, these are not weights")
    else:
        torch.save({"features.0.weight": torch.zeros(2)} if content == "another network" else [1, 2], file)
    with pytest.raises(ValueError, match="vgg19") as error:
        ContrastiveFeatures(str(file))
    assert str(file) in str(error.value), f"the message does not name the file: {error.value}"
    assert "\n" not in str(error.value), f"the message has more than one line: {error.value}"
