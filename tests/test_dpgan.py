"""DP-GAN, baselines/dpgan.py: its networks against Tables 6 to 8, and DP-GAN Eq. 1 to 7 and 9 by plain Python loops.

    python -m pytest tests/test_dpgan.py          (from the repository root; under half a minute on a CPU)

Oracles: the equations as printed, on tiny tensors; parameter counts added up by hand, and 69.5 M of Table 5;
properties that the paper states in words. DP-GAN Eq. 8 is in tests/test_oasis.py, which says how networks are made.
"""
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines import oasis
from baselines import train as baselines_train
from baselines.dpgan import (MATCHED, PATCH_LEVELS, Discriminator, Generator, class_weights, feature_matching_loss,
                             patch_discriminator_loss, patch_generator_loss, patch_head)
from baselines.train import dpgan_discriminator_losses, dpgan_generator_losses, oasis_discriminator_losses
from generator import SPADE, parameters_by_part
from losses import discriminator_loss
from test_discriminator import pictures
from test_generator import (CLASSES, assert_every_image_follows_its_own_z, assert_grows_into_a_picture, assert_is,
                            assert_refuses_what_does_not_fit, blocks_of, conv, full_size, image_pyramid,
                            label_convolutions, label_maps, noise, spade, without_gradient)
from test_losses import probability, random_case
from test_oasis import LEVELS, SKIPPED, assert_has_no_backbone, awake, loops_eq8, loops_mask

TINY = dict(widths=(8, 8, 8, 6, 6, 4), stem_channels=5, label_channels=4, z_dim=6)  # five scales: by 16
B, C, H, W = 2, 3, 2, 3


def tiny_generator(offset_channels=0, **changes):
    torch.manual_seed(0)
    return awake(Generator(CLASSES, offset_channels, **{**TINY, **changes})).eval()


def tiny_discriminator(levels=4, **changes):
    torch.manual_seed(0)
    return awake(Discriminator(CLASSES, *LEVELS[levels], head_channels=6, **changes))


# ------------------------------------------------------------------------------------ parameters, by hand

@pytest.mark.parametrize("what, classes, options, total", [
    ("cityscapes", 35, {}, 69_513_219), ("ade20k", 151, {}, 70_615_683), ("coco_stuff", 183, {}, 70_919_811),
    ("w/o cat", 35, dict(concatenate_last=False), None)])
def test_parameters_of_the_generator_at_full_size(what, classes, options, total, monkeypatch):
    """69.5 M at 35 classes are Table 5; the totals were measured on the published code. In the supplement's Table 3,
    "w/o cat", every gamma and beta reads 64 channels in place of 128."""
    inputs = 64 + classes  # Table 6: noise and labels
    by_hand = {"label_pyramid": label_convolutions(inputs), "first": conv(inputs, 1024), "to_image": conv(64, 3),
               "blocks": image_pyramid(lambda channels: spade(channels, 64 if options else 128))}
    G = full_size(lambda: Generator(classes, **options), monkeypatch, *SKIPPED, "baselines.dpgan.initialise")
    assert parameters_by_part(G) == by_hand, f"{what}: a part differs from Tables 6 and 8 (right: by hand)"
    assert total is None or sum(by_hand.values()) == total, f"{what}: {by_hand}"


def test_parameters_and_sizes_of_the_discriminator_at_full_size(monkeypatch):
    """Table 7: OASIS's UNet and two heads, on (256, 16, 16) and (512, 4, 4); features of up_2 ... up_6."""
    D = full_size(lambda: Discriminator(151), monkeypatch, *SKIPPED, "baselines.dpgan.initialise")
    logits, scores, matched = D.everything(torch.empty(2, 3, 256, 256, device="meta"))
    heads = sum(conv(i, 64) + 3 * (conv(64, 64) + 2*64) + conv(64, 1) for i in (256, 512))  # 3x3, 3 x with norm, 3x3
    assert parameters_by_part(D) == {"unet": 22_258_904, "heads": heads} and heads == 665_986  # unet: test_oasis.py
    assert logits.shape == (2, 152, 256, 256)
    assert [tuple(s.shape) for s in scores] == [(2, 1, 8, 8), (2, 1, 2, 2)]
    assert [tuple(f.shape[1:]) for f in matched] == [(256, 16, 16), (256, 32, 32), (128, 64, 64), (128, 128, 128),
                                                     (64, 256, 256)]


# ------------------------------------------------------------------------------------------------ generator

def loops_convolution(weight, bias, x, o, i, j):
    """One output of a 3x3 convolution with zeros beyond the border; weight (out, in, 3, 3), x (in, H, W)."""
    total = bias[o].item()
    for k, di, dj in np.ndindex(len(x), 3, 3):
        y, z = i + di - 1, j + dj - 1
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            total += weight[o, k, di, dj].item() * x[k, y, z].item()
    return total


def test_dpgan_eq1_spade_is_the_papers_normalisation():
    """(DP-GAN Eq. 1) gamma (h - mu) / sigma + beta by loops, mu and sigma of a channel over n, x and y; gamma is 1
    plus a 3x3 convolution of the condition (as in SPADE), beta another one (DP-GAN Eq. 2)."""
    torch.manual_seed(0)
    block = SPADE(channels=3, condition_channels=4)
    h, condition = 2 * torch.randn(B, 3, H, W) + 1, torch.randn(B, 4, H, W)
    weight, bias = block.to_gamma_beta.weight.detach(), block.to_gamma_beta.bias.detach()
    expected = torch.zeros_like(h)
    for c in range(3):
        values = h[:, c].flatten().tolist()
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + 1e-5)
        for n, y, x in np.ndindex(B, H, W):
            gamma = 1 + loops_convolution(weight, bias, condition[n], c, y, x)
            beta = loops_convolution(weight, bias, condition[n], 3 + c, y, x)
            expected[n, c, y, x] = gamma * (h[n, c, y, x].item() - mu) / sigma + beta
    assert_is(block.train()(h, condition).detach(), expected, "SPADE is not gamma (h - mu) / sigma + beta")


def normalised(x):
    """As batch norm does in training: by the statistics of each channel."""
    mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def watched(G):
    """alpha^0 ... alpha^4 (the stem of Table 6 conditions nothing), and the condition of every block."""
    alpha = []
    for block in G.label_pyramid[1:]:
        block.register_forward_hook(lambda _, args, output: alpha.insert(0, output))
    return alpha, [condition for _, condition, _ in blocks_of(G, label_maps(2, 32, 48), noise())[2]]


@pytest.mark.parametrize("concatenate_last", [True, False])
def test_dpgan_eq2_gamma_and_beta_read_alpha_i_and_the_resized_alpha_0(concatenate_last):
    """(DP-GAN Eq. 2) In the whole generator: block i sees alpha^i in front of Up(alpha^0), and gamma^i and beta^i of
    its first SPADE are Conv(alpha^i (+) Up(alpha^0)), by loops at a few pixels. In "w/o cat" it is alpha^i alone."""
    G = tiny_generator(concatenate_last=concatenate_last)
    alpha, conditions = watched(G)
    assert [tuple(a.shape) for a in alpha] == [(2, 4, 2 * 2 ** i, 3 * 2 ** i) for i in range(5)]
    for i, condition in enumerate(conditions):
        up = F.interpolate(alpha[0], size=alpha[i].shape[2:], mode="bilinear", align_corners=False)
        expected = torch.cat([alpha[i], up], dim=1) if concatenate_last else alpha[i]
        assert_is(condition, expected, f"block {i} is not conditioned on alpha^{i} (+) Up(alpha^0)")
        layer = G.blocks[i].spade_0.to_gamma_beta
        found, channels = layer(condition).detach(), layer.out_channels // 2
        for c, (y, x) in itertools.product((0, channels - 1), ((0, 0), (1, 2))):
            gamma, beta = (loops_convolution(layer.weight, layer.bias, expected[1], o, y, x) for o in (c, channels + c))
            assert_is(found[1, c, y, x], gamma, f"gamma^{i}")
            assert_is(found[1, channels + c, y, x], beta, f"beta^{i}")


def test_the_label_pyramid_is_table_6():
    """z and labels at full resolution; "Conv2d-BatchNorm2d-ReLU", so that the statistics are those of the convolution
    and nothing is negative; stride 1 twice, then 2."""
    G, expected = tiny_generator(), []
    x = oasis.noise_and_labels(G, label_maps(2, 32, 48), noise(), None)
    for i, (layer, _, _) in enumerate(G.label_pyramid):
        x = normalised(F.conv2d(x, layer.weight, layer.bias, stride=1 if i < 2 else 2, padding=1)).clamp_min(0)
        expected.append(x.detach())
    assert [e.shape[1] for e in expected] == [5, 4, 4, 4, 4, 4], "32, then 64 at every scale (Table 6), here 5 and 4"
    for i, (found, e) in enumerate(zip(watched(G.train())[0], expected[:0:-1], strict=True)):
        assert_is(found, e, f"alpha^{i} (s_{i} of Table 6)", atol=1e-3, rtol=1e-3)


def test_the_image_pyramid_is_table_8():
    """up_0 is a convolution of noise and labels at 1/16; the picture ends as tanh(conv(LeakyReLU(last block)))."""
    G, label_map = tiny_generator(), label_maps(2, 32, 48)
    x = oasis.noise_and_labels(G, label_map, noise(), None)
    assert_grows_into_a_picture(G, x[:, :, ::16, ::16], label_map, noise())


def test_every_convolution_starts_as_in_oasis():
    """Xavier normal with gain 0.02, biases 0, in the generator and in the heads (test_oasis.py has the rest)."""
    torch.manual_seed(0)
    layer = Generator(40, widths=(64, 32, 32), label_channels=48).label_pyramid[2][0]
    for what, found in (("label pyramid", layer), ("patch head", Discriminator(3, *LEVELS[4]).heads[0][2])):
        o, i = found.weight.shape[:2]
        expected = 0.02 * math.sqrt(2 / (9 * (o + i)))
        assert abs(found.weight.std() / expected - 1) < 0.05 and not found.bias.any(), f"{what}: {found.weight.std()}"


def test_every_image_follows_its_own_z():
    assert_every_image_follows_its_own_z(tiny_generator())


@pytest.mark.parametrize("concatenate_last", [True, False])
def test_gradient_reaches_every_parameter_of_the_generator(concatenate_last):
    """But for the biases that a batch norm behind them takes out again: of the label pyramid and of each conv_0."""
    G = tiny_generator(offset_channels=2, concatenate_last=concatenate_last).train()
    (G(label_maps(), noise(), pictures(seed=1)[:, :2]) * pictures(seed=2)).sum().backward()
    normed = {f"label_pyramid.{i}.0.bias" for i in range(6)} | {f"blocks.{i}.conv_0.bias" for i in range(5)}
    assert not set(without_gradient(G)) - normed


def test_the_generator_refuses_what_does_not_fit():
    assert_refuses_what_does_not_fit(tiny_generator, 16)


# -------------------------------------------------------------------------------------------- discriminator

BLOCKS = {  # Table 4(b) in the paper's numbers, for n levels: "the fourth and sixth" of six are n - 2 and n
    "none": lambda n: [], "encoder": lambda n: [("down", n - 2), ("down", n)],
    "decoder": lambda n: [("up", 1), ("up", 2)],
    "both": lambda n: [("down", n - 2), ("down", n), ("up", 1), ("up", 2)]}
SIDES = {"none": (), "encoder": ("down",), "decoder": ("up",), "both": ("down", "up")}


@torch.no_grad()
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("where", BLOCKS)
def test_patch_heads_and_matched_features_sit_on_their_blocks(levels, where):
    """Table 4(b): the scores are head(block), half its size; the logits are those of the UNet alone. Table 4(c):
    features are matched "after all blocks except for the first one"."""
    D, image = tiny_discriminator(levels, patch=where, matched=where).eval(), pictures(2, 64, 32)
    logits, scores, features = D.everything(image)
    assert torch.equal(logits, D(image)) and logits.shape == (2, CLASSES + 1, 64, 32)
    blocks = dict(zip(("down", "up"), D.unet.encode_decode(image)))
    for score, (side, number), head in zip(scores, BLOCKS[where](levels), D.heads, strict=True):
        block = blocks[side][number - 1]
        assert score.shape == (2, 1, math.ceil(block.shape[2] / 2), math.ceil(block.shape[3] / 2))
        assert_is(score, head(block), f"a head of {where} reads another block")
    for found, block in zip(features, [block for side in SIDES[where] for block in blocks[side][1:]], strict=True):
        assert torch.equal(found, block), f"a feature of {where} is of another block"


def test_a_patch_head_is_convolution_of_stride_2_then_convolution_norm_relu():
    """By hand: conv of stride 2, ReLU, three times conv, batch norm, ReLU, conv to one score. Real and generated
    pictures come in separate batches: with the norm right before the last convolution, the mean score of maps of one
    pixel would be its bias, and L_ms could not fall below 2."""
    torch.manual_seed(0)
    head, psi = patch_head(5, 6), torch.randn(3, 5, 8, 12)
    y, layers = psi, [m for m in head if isinstance(m, nn.Conv2d)]
    assert len(layers) == 5
    for i, layer in enumerate(layers):
        y = F.conv2d(y, layer.weight, layer.bias, stride=2 if i == 0 else 1, padding=1)
        if i in (1, 2, 3):
            y = normalised(y)
        y = y.clamp_min(0) if i < 4 else y
    assert y.shape == (3, 1, 4, 6)
    assert_is(head(psi).detach(), y.detach(), "the head does something else, or in another order")
    head = patch_head(5, 16)
    means = [head(torch.randn(4, 5, 1, 1)).mean().item() for _ in range(2)]
    assert abs(means[0] - means[1]) > 1e-3, f"mean scores of two batches are {means}"


@pytest.mark.parametrize("levels", LEVELS)
def test_the_toy_size_trains(levels):
    """64x64 and a batch of 4 in training mode: heads down to one pixel give finite scores that differ by image."""
    logits, scores, _ = tiny_discriminator(levels, patch="both", matched="both").everything(pictures(4))
    assert logits.isfinite().all()
    for score in scores:
        assert score.isfinite().all() and score.flatten(1).mean(dim=1).std() > 1e-6, f"{score.flatten(1)}"
    assert min(s.shape[2] for s in scores) == (1 if levels == 5 else 2)


def test_the_discriminator_has_no_backbone_and_refuses_what_does_not_fit():
    assert_has_no_backbone(tiny_discriminator().eval())
    with pytest.raises(ValueError, match="32x40.*divisible by 16"):
        tiny_discriminator().everything(pictures(1, 32, 40))
    assert set(MATCHED) == set(PATCH_LEVELS)


def without_gradient_unless_normed(D):
    """But for the biases of the heads that a batch norm behind them takes out again."""
    return {name for name in without_gradient(D)
            if not (name.startswith("heads") and name.endswith(("2.bias", "5.bias", "8.bias")))}


def test_the_patch_heads_and_the_encoder_learn_from_the_patch_loss():
    """(DP-GAN Eq. 5) Every parameter of them. The released code adds the loss as a number, without a gradient."""
    D = tiny_discriminator()
    for head in D.heads:  # scores beyond 1 and -1: where no hinge is flat, real and generated cancel in the last bias
        head[-1].weight.data.mul_(20)
    patch_discriminator_loss(*(D.everything(pictures(4, 32, 48, seed))[1] for seed in (1, 2))).backward()
    others = {name for name, _ in D.named_parameters() if not name.startswith(("heads", "unet.encoder"))}
    assert without_gradient_unless_normed(D) == others


def test_every_parameter_of_the_discriminator_learns():
    D = tiny_discriminator(patch="both")
    logits, scores, _ = D.everything(pictures(4))
    (logits.square().sum() + sum(s.square().sum() for s in scores)).backward()
    assert not without_gradient_unless_normed(D)


def test_the_generator_learns_through_the_heads_and_the_features():
    """(DP-GAN Eq. 6, 7) Both terms reach the generated picture, D's parameters being frozen; the real one nothing."""
    D = tiny_discriminator().requires_grad_(False)
    fake, real = (pictures(4, seed=seed).requires_grad_() for seed in (1, 2))
    (_, scores, fake_features), (_, _, real_features) = D.everything(fake), D.everything(real)
    for what, loss in (("patch", patch_generator_loss(scores)),
                       ("feature", feature_matching_loss(real_features, fake_features))):
        gradient, of_real = torch.autograd.grad(loss, (fake, real), retain_graph=True, allow_unused=True)
        assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0, f"{what} loss: no gradient at some generated picture"
        assert of_real is None, f"{what} loss: the real side must be detached"


# ---------------------------------------------------------------------------------------------- the losses

LABEL_MAP = torch.tensor([[[0, 2, 2], [0, 0, 2]], [[2, 2, 2], [0, 2, 2]]])  # class 1 of three does not occur


def counts_of(label_map, classes=C):
    return label_map.flatten().bincount(minlength=classes)


def loops_eq4(label_map, classes=C):
    """alpha_c (DP-GAN Eq. 4) over a batch: all pixels over those of class c; 0 where there are none."""
    pixels = label_map.flatten().tolist()
    return [len(pixels) / pixels.count(c) if c in pixels else 0.0 for c in range(classes)]


def test_dpgan_eq4_class_weights_are_the_papers_inverse_frequencies():
    """(DP-GAN Eq. 4) by loops; class 1 does not occur."""
    assert_is(class_weights(counts_of(LABEL_MAP)), loops_eq4(LABEL_MAP), "alpha is not B H W / n_c")


def test_dpgan_eq4_by_hand():
    """(DP-GAN Eq. 4) 8, 4, 0 and 4 pixels of 16, the first class unknown: its pixels count, its weight is 0. OASIS's
    further 1/K would make 2 and 2 of 4 and 4. Where every image is alike, it is the mean over images of H W / n_c, as
    printed."""
    counts = torch.tensor([8, 4, 0, 4])
    assert_is(class_weights(counts), [2.0, 4.0, 0.0, 4.0], "16 / n_c")
    assert_is(class_weights(counts, unknown=0), [0.0, 4.0, 0.0, 4.0], "the unknown class gets 0")
    assert counts.tolist() == [8, 4, 0, 4], "the counts of the caller were changed"
    alike = torch.tensor([[0, 0, 1], [2, 2, 2]]).expand(2, -1, -1)
    assert_is(class_weights(counts_of(alike)), [(6 / n + 6 / n) / 2 for n in (2, 1, 3)], "E_l[H W / n_c]")


def test_dpgan_eq4_has_two_readings_and_the_default_is_the_printed_one():
    """(DP-GAN Eq. 4) by loops: as printed, and "balanced", divided by the number of known classes K. Over pixels the
    mean of alpha is K as printed, and 1, the weight of D's fake term, divided by K."""
    counts = counts_of(LABEL_MAP)                                                         # 4, 0, 8: K = 2
    for words, K, divided in ((["--class-weights", "balanced"], 1, 2), ([], 2, 1)):
        args = baselines_train.parse_options(["--model", "dpgan", "--dataset", "toy", *words])
        alpha = baselines_train.weigh(counts, None, args)
        assert_is(alpha, [a / divided for a in loops_eq4(LABEL_MAP)], f"alpha with {words}")
        pixels = LABEL_MAP.flatten().tolist()
        assert sum(alpha[c].item() for c in pixels) / len(pixels) == pytest.approx(K)
    unknown = baselines_train.weigh(counts, 0, baselines_train.parse_options(["--model", "dpgan", "--dataset", "toy"]))
    assert_is(unknown, [0.0, 0.0, 12 / 8], "one class is known")


def loops_own_class(logits, label_map, alpha):
    """- E sum_c alpha_c sum_xy l_xyc log D_xyc, of real pictures in (DP-GAN Eq. 3), of generated ones in Eq. 7."""
    total = 0.0
    for b, y, x in np.ndindex(label_map.shape):
        for c in range(len(alpha)):
            l_c = 1 if label_map[b, y, x].item() == c else 0
            total -= alpha[c] * l_c * math.log(probability(logits, b, c, y, x))
    return total / len(label_map)


def loops_eq3(real_logits, fake_logits, label_map, alpha):
    """L_pixel (DP-GAN Eq. 3)."""
    fake = -sum(math.log(probability(fake_logits, b, -1, y, x)) for b, y, x in np.ndindex(label_map.shape))
    return loops_own_class(real_logits, label_map, alpha) + fake / len(label_map)


def test_dpgan_eq3_pixel_loss_is_losses_discriminator_loss():
    """(DP-GAN Eq. 3) by loops, with the alpha of DP-GAN Eq. 4: gamma 0 and no smoothing."""
    logits = random_case()[:2]
    found = discriminator_loss(*logits, LABEL_MAP, class_weights(counts_of(LABEL_MAP)), gamma=0.0, smoothing=0.0)
    assert_is(found, loops_eq3(*logits, LABEL_MAP, loops_eq4(LABEL_MAP)), "L_pixel is not the sum of DP-GAN Eq. 3")


def random_layers(seed, channels, sizes=((2, 3), (4, 2))):
    random = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(B, channels + i if channels > 1 else 1, h, w, generator=random)
            for i, (h, w) in enumerate(sizes)]


def mean_of(values):
    values = list(values)
    return sum(values) / len(values)


def loops_hinge(layers, sign):
    """- E min(-1 + sign * score, 0) over pictures and patches, then the mean over layers (DP-GAN Eq. 5, 7)."""
    return mean_of(-mean_of(min(-1 + sign * s, 0) for s in layer.flatten().tolist()) for layer in layers)


def test_dpgan_eq5_patch_loss_is_the_papers_hinge():
    """(DP-GAN Eq. 5) by loops, on two layers of unlike size."""
    real, fake = random_layers(0, 1), random_layers(1, 1)
    assert_is(patch_discriminator_loss(real, fake), loops_hinge(real, 1) + loops_hinge(fake, -1), "not DP-GAN Eq. 5")


def test_dpgan_eq5_eq7_by_hand():
    """(DP-GAN Eq. 5) Real scores of 3 and 0 cost 0 and 1, generated ones of -3 and 1 cost 0 and 2. (DP-GAN Eq. 7) A
    hinge, as printed: scores of 3 and -1 cost 0 and 2. The released code has -mean, here -1."""
    real, fake, of_G = (torch.tensor(scores).view(2, 1, 1, 1) for scores in ([3.0, 0.0], [-3.0, 1.0], [3.0, -1.0]))
    assert_is(patch_discriminator_loss([real], [fake]), 1 / 2 + 2 / 2, "(0 + 1) / 2 + (0 + 2) / 2")
    assert_is(patch_generator_loss([of_G]), 1.0, "(0 + 2) / 2")


def loops_eq6(real, fake):
    """L_fm (DP-GAN Eq. 6), one pixel at a time, then the mean over layers."""
    layers = []
    for x, g in zip(real, fake):
        (B, C_i, H_i, W_i), total = x.shape, 0.0
        for b, i, j in np.ndindex(B, H_i, W_i):
            total += sum((p - q) ** 2 for p, q in zip(x[b, :, i, j].tolist(), g[b, :, i, j].tolist()))
        layers.append(total / (C_i * H_i * W_i) / B)
    return mean_of(layers)


def test_dpgan_eq6_feature_matching_is_the_papers_norm():
    """(DP-GAN Eq. 6) by loops: two layers with 3 and 4 channels, averaged (the released code adds them up)."""
    real, fake = random_layers(0, 3), random_layers(1, 3)
    assert_is(feature_matching_loss(real, fake), loops_eq6(real, fake), "L_fm is not DP-GAN Eq. 6")


def one_step():
    """D, a batch of two pictures of 16x16, alpha and the options of a step; weights unlike 1 tell the terms apart."""
    batch = {"real": pictures(2, 16, 16, seed=1), "label_map": label_maps(2, 16, 16), "z_1": noise(),
             "flips": torch.rand(2, CLASSES, generator=torch.Generator().manual_seed(0)) < 0.5}
    args = SimpleNamespace(gamma=0, label_smoothing=0, lambda_gan=0.7, lambda_patch=0.5, lambda_fm=3, lambda_lm=5)
    return tiny_discriminator().eval(), batch, loops_eq4(batch["label_map"], CLASSES), args


@torch.no_grad()
def test_dpgan_eq7_is_what_the_generator_minimises():
    """(DP-GAN Eq. 7) by loops: the pixel term, divided by H*W, the patch term and L_fm, each times its weight. A weight
    of 0 leaves a term out."""
    G, (D, batch, alpha, args) = tiny_generator(), one_step()
    terms, image, features, nothing = dpgan_generator_losses(G, D, None, batch, torch.tensor(alpha), None, args)
    expected = G(batch["label_map"], batch["z_1"], return_features=True)
    assert torch.equal(image, expected[0]) and torch.equal(features, expected[1]) and nothing is None
    (logits, scores, matched), (_, _, real_matched) = D.everything(image), D.everything(batch["real"])
    expected = {"gan": 0.7 * loops_own_class(logits, batch["label_map"], alpha) / (16 * 16),
                "patch": 0.5 * loops_hinge(scores, 1), "feature_matching": 3.0 * loops_eq6(real_matched, matched)}
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert_is(term, expected[name], f"the term {name} of DP-GAN Eq. 7")
    args.lambda_patch = args.lambda_fm = 0
    assert set(dpgan_generator_losses(G, D, None, batch, torch.tensor(alpha), None, args)[0]) == {"gan"}


@torch.no_grad()
def test_dpgan_eq9_is_what_the_discriminator_minimises():
    """(DP-GAN Eq. 9) by loops: L_pixel, divided by H*W, L_ms and lambda_LM L_LM. OASIS's has no L_ms. A weight of 0
    leaves a term out."""
    D, batch, alpha, args = one_step()
    real, fake, t = batch["real"], pictures(2, 16, 16, seed=2), batch["label_map"]
    M = loops_mask(t, batch["flips"].tolist())
    (real_logits, real_scores, _), (fake_logits, fake_scores, _) = D.everything(real), D.everything(fake)
    mixed_logits = D(M * real + ~M * fake)
    expected = {"pixels": loops_eq3(real_logits, fake_logits, t, alpha) / (16 * 16),
                "patch": 0.5 * (loops_hinge(real_scores, 1) + loops_hinge(fake_scores, -1)),
                "label_mix": 5.0 * loops_eq8(mixed_logits, real_logits, fake_logits, M)}
    for losses, names in ((dpgan_discriminator_losses, {"pixels", "patch", "label_mix"}),
                          (oasis_discriminator_losses, {"pixels", "label_mix"})):
        terms, *logits = losses(D, batch, fake, None, torch.tensor(alpha), args)
        assert set(terms) == names and torch.equal(logits[0], real_logits) and torch.equal(logits[1], fake_logits)
        for name, term in terms.items():
            assert_is(term, expected[name], f"the term {name} of DP-GAN Eq. 9")
    args.lambda_patch = args.lambda_lm = 0
    assert set(dpgan_discriminator_losses(D, batch, fake, None, torch.tensor(alpha), args)[0]) == {"pixels"}


def test_dpgan_eq5_eq6_eq7_without_layers_are_0():
    """(DP-GAN Eq. 5, 6, 7) The first rows of Table 4(b) and (c)."""
    for loss in (patch_discriminator_loss([], []), feature_matching_loss([], []), patch_generator_loss([])):
        assert loss.shape == () and loss == 0


def test_dpgan_eq5_eq6_eq7_compute_in_float32():
    """(DP-GAN Eq. 5, 6, 7) bf16 scores and features under autocast; bf16 could not hold the means."""
    real, fake = ([t.bfloat16() for t in random_layers(seed, 3, ((32, 32), (16, 16)))] for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        losses = [patch_discriminator_loss(real, fake), feature_matching_loss(real, fake), patch_generator_loss(fake)]
    pairs = [(x.double(), g.double()) for x, g in zip(real, fake)]
    expected = [mean_of((1 - x).clamp_min(0).mean() + (1 + g).clamp_min(0).mean() for x, g in pairs),
                mean_of((x - g).square().mean() for x, g in pairs),
                mean_of((1 - g).clamp_min(0).mean() for _, g in pairs)]
    for loss, e in zip(losses, expected):
        assert loss.dtype == torch.float32
        assert_is(loss, e.item(), "rounded to bf16", rtol=1e-5, atol=0)
