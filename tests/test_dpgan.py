"""DP-GAN, baselines/dpgan.py: its networks against Tables 6 to 8, and DP-GAN Eq. 1 to 7 and 9 by plain Python loops.

    python -m pytest tests/test_dpgan.py          (from the repository root; under half a minute on a CPU)

Oracles: the equations as printed, on tiny tensors; parameter counts added up by hand, and 69.5 M of Table 5;
properties that the paper states in words. DP-GAN Eq. 8 is in tests/test_oasis.py. Networks are tiny, full size on
the meta device only.

Every network starts from a gain of 0.02, which makes tiny numbers; `awake` enlarges what spectral norm does not hold.
"""
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines import oasis
from baselines.dpgan import (MATCHED, PATCH_LEVELS, Discriminator, Generator, class_weights, conv_block,
                             feature_matching_loss, patch_discriminator_loss, patch_generator_loss, patch_head)
from baselines.train import dpgan_discriminator_losses, dpgan_generator_losses, oasis_discriminator_losses
from generator import SPADE, parameters_by_part
from losses import discriminator_loss
from test_discriminator import pictures
from test_generator import (CLASSES, assert_every_image_follows_its_own_z, assert_grows_into_a_picture, assert_is,
                            assert_refuses_what_does_not_fit, blocks_of, conv, full_size, image_pyramid,
                            label_convolutions, label_maps, noise, spade, without_gradient)
from test_losses import probability
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

@pytest.mark.parametrize("what, classes, options, total, millions", [
    ("cityscapes", 35, {}, 69_513_219, 69.51), ("ade20k", 151, {}, 70_615_683, 70.62),
    ("coco_stuff", 183, {}, 70_919_811, 70.92), ("w/o cat", 35, dict(concatenate_last=False), 61_441_539, 61.44)])
def test_parameters_of_the_generator_at_full_size(what, classes, options, total, millions, monkeypatch):
    """69.5 M at 35 classes are Table 5; the first three were measured on the published code. In the supplement's Table 3,
    "w/o cat", every gamma and beta reads 64 channels in place of 128."""
    inputs = 64 + classes  # Table 6: noise and labels
    by_hand = {"label_pyramid": label_convolutions(inputs), "first": conv(inputs, 1024), "to_image": conv(64, 3),
               "blocks": image_pyramid(lambda channels: spade(channels, 64 if options else 128))}
    G = full_size(lambda: Generator(classes, **options), monkeypatch, *SKIPPED, "baselines.dpgan.initialise")
    assert parameters_by_part(G) == by_hand, f"{what}: a part differs from Tables 6 and 8 (right: by hand)"
    assert sum(by_hand.values()) == total and round(total / 1e6, 2) == millions, f"{what}: {by_hand}"


def test_parameters_and_sizes_of_the_discriminator_at_full_size(monkeypatch):
    """Table 7: OASIS's UNet and two heads, on (256, 16, 16) and (512, 4, 4); features of up_2 ... up_6."""
    D = full_size(lambda: Discriminator(151), monkeypatch, *SKIPPED, "baselines.dpgan.initialise")
    logits, scores, matched = D.everything(torch.empty(2, 3, 256, 256, device="meta"))
    heads = sum(conv(i, 64) + 3 * (conv(64, 64) + 2*64) + conv(64, 1) for i in (256, 512))  # 3x3, 3 x with norm, 3x3
    parts = parameters_by_part(D)
    assert parts == {"unet": 22_258_904, "heads": heads} and heads == 665_986  # unet: test_oasis.py
    assert round(sum(parts.values()) / 1e6, 2) == 22.92 and logits.shape == (2, 152, 256, 256)
    assert [tuple(s.shape) for s in scores] == [(2, 1, 8, 8), (2, 1, 2, 2)]
    assert [tuple(f.shape[1:]) for f in matched] == [(256, 16, 16), (256, 32, 32), (128, 64, 64), (128, 128, 128),
                                                     (64, 256, 256)]


# ------------------------------------------------------------------------------------------------ generator

def loops_convolution(weight, bias, x, o, i, j):
    """One output of a 3x3 convolution with zeros beyond the border; weight (out, in, 3, 3), x (in, H, W)."""
    total = bias[o].item()
    for k in range(x.shape[0]):
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                if 0 <= i + di < x.shape[1] and 0 <= j + dj < x.shape[2]:
                    total += weight[o, k, di + 1, dj + 1].item() * x[k, i + di, j + dj].item()
    return total


def loops_bilinear(x, height, width):
    """(B, K, h, w) at a larger size: pixel centres at half integers, the nearest pixel beyond the border."""
    def places(size, small):
        for i in range(size):
            at = max((i + 0.5) * small / size - 0.5, 0)
            low = min(int(at), small - 1)
            yield low, min(low + 1, small - 1), at - low
    out = torch.zeros(*x.shape[:2], height, width)
    for i, (top, bottom, down) in enumerate(places(height, x.shape[2])):
        for j, (left, right, over) in enumerate(places(width, x.shape[3])):
            out[:, :, i, j] = ((1 - down) * ((1 - over) * x[:, :, top, left] + over * x[:, :, top, right])
                               + down * ((1 - over) * x[:, :, bottom, left] + over * x[:, :, bottom, right]))
    return out


def test_dpgan_eq1_spade_is_the_papers_normalisation():
    """(DP-GAN Eq. 1) gamma (h - mu) / sigma + beta by loops, mu and sigma of a channel over n, x and y; gamma is 1
    plus a 3x3 convolution of the condition (as in SPADE), beta another one (DP-GAN Eq. 2)."""
    torch.manual_seed(0)
    block = SPADE(channels=3, condition_channels=4)
    h, condition = 2 * torch.randn(B, 3, H, W) + 1, torch.randn(B, 4, H, W)
    weight, bias = block.to_gamma_beta.weight.detach(), block.to_gamma_beta.bias.detach()
    expected = torch.zeros_like(h)
    for c in range(3):
        values = [h[n, c, y, x].item() for n in range(B) for y in range(H) for x in range(W)]
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + 1e-5)
        for n in range(B):
            for y in range(H):
                for x in range(W):
                    gamma = 1 + loops_convolution(weight, bias, condition[n], c, y, x)
                    beta = loops_convolution(weight, bias, condition[n], 3 + c, y, x)
                    expected[n, c, y, x] = gamma * (h[n, c, y, x].item() - mu) / sigma + beta
    assert_is(block.train()(h, condition).detach(), expected, "SPADE is not gamma (h - mu) / sigma + beta")


def watched(G):
    """alpha^0 ... alpha^4 (the stem of Table 6 conditions nothing), and the condition of every block."""
    alpha = []
    for block in G.label_pyramid[1:]:
        block.register_forward_hook(lambda _, args, output: alpha.insert(0, output))
    return alpha, [condition for _, condition, _ in blocks_of(G, label_maps(2, 32, 48), noise())[2]]


def test_dpgan_eq2_gamma_and_beta_read_alpha_i_and_the_resized_alpha_0():
    """(DP-GAN Eq. 2) In the whole generator: block i sees alpha^i in front of Up(alpha^0), and gamma^i and beta^i of
    its first SPADE are Conv(alpha^i (+) Up(alpha^0)), by loops at a few pixels."""
    G = tiny_generator()
    alpha, conditions = watched(G)
    assert [tuple(a.shape) for a in alpha] == [(2, 4, 2 * 2 ** i, 3 * 2 ** i) for i in range(5)]
    for i, condition in enumerate(conditions):
        expected = torch.cat([alpha[i], loops_bilinear(alpha[0], *alpha[i].shape[2:])], dim=1)
        assert_is(condition, expected, f"block {i} is not conditioned on alpha^{i} (+) Up(alpha^0)")
        layer = G.blocks[i].spade_0.to_gamma_beta
        found, channels = layer(condition).detach(), layer.out_channels // 2
        weight, bias = layer.weight.detach(), layer.bias.detach()
        for c in (0, channels - 1):
            for y, x in ((0, 0), (1, 2)):
                assert_is(found[1, c, y, x], loops_convolution(weight, bias, expected[1], c, y, x), f"gamma^{i}")
                beta = loops_convolution(weight, bias, expected[1], channels + c, y, x)
                assert_is(found[1, channels + c, y, x], beta, f"beta^{i}")


def test_dpgan_eq2_without_concatenation_alpha_i_alone():
    """(DP-GAN Eq. 2) "w/o cat" of the supplement's Table 3."""
    for i, (alpha_i, condition) in enumerate(zip(*watched(tiny_generator(concatenate_last=False)), strict=True)):
        assert torch.equal(condition, alpha_i), f"block {i} must see alpha^{i} and nothing else"


def test_the_label_pyramid_is_table_6():
    """z and labels at full resolution; ConvBlock is convolution, batch norm, ReLU; stride 1 twice, then 2."""
    G, expected = tiny_generator(), []
    x = oasis.noise_and_labels(G, label_maps(2, 32, 48), noise(), None)
    for i, (layer, norm, _) in enumerate(G.label_pyramid):
        x = F.conv2d(x, layer.weight, layer.bias, stride=1 if i < 2 else 2, padding=1) / math.sqrt(1 + 1e-5)
        x = torch.where(x > 0, x, 0)  # a fresh batch norm in eval mode: mean 0, variance 1
        expected.append(x.detach())
    assert [e.shape[1] for e in expected] == [5, 4, 4, 4, 4, 4], "32, then 64 at every scale (Table 6), here 5 and 4"
    for i, (found, e) in enumerate(zip(watched(G)[0], expected[:0:-1], strict=True)):
        assert_is(found, e, f"alpha^{i} (s_{i} of Table 6)")


def test_a_conv_block_normalises_before_it_rectifies():
    """Table 6, "Conv2d-BatchNorm2d-ReLU": nothing is negative, and the statistics are those of the convolution."""
    torch.manual_seed(0)
    block, x = conv_block(3, 4, 2, "zeros"), torch.randn(2, 3, 8, 8)
    y = block[0](x)
    y = (y - y.mean(dim=(0, 2, 3), keepdim=True)) / (y.var(dim=(0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert_is(block(x).detach(), torch.where(y > 0, y, 0).detach(), "not convolution, batch norm, ReLU")


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

EXPECTED_BLOCKS = {  # Table 4(b) in the paper's numbers, for levels n: "the fourth and sixth" of six are n - 2 and n
    "none": lambda n: [], "encoder": lambda n: [("down", n - 2), ("down", n)],
    "decoder": lambda n: [("up", 1), ("up", 2)],
    "both": lambda n: [("down", n - 2), ("down", n), ("up", 1), ("up", 2)]}


@torch.no_grad()
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("patch", EXPECTED_BLOCKS)
def test_patch_heads_sit_on_their_blocks(levels, patch):
    """Table 4(b): the scores are head(block), half its size; the logits are those of the UNet alone."""
    D, image = tiny_discriminator(levels, patch=patch).eval(), pictures(2, 64, 32)
    logits, scores, _ = D.everything(image)
    blocks = dict(zip(("down", "up"), D.unet.encode_decode(image)))
    expected = [blocks[side][number - 1] for side, number in EXPECTED_BLOCKS[patch](levels)]
    for score, block, head in zip(scores, expected, D.heads, strict=True):
        assert score.shape == (2, 1, math.ceil(block.shape[2] / 2), math.ceil(block.shape[3] / 2))
        assert_is(score, head(block), f"a head of {patch} reads another block")
    assert torch.equal(logits, D(image)) and logits.shape == (2, CLASSES + 1, 64, 32)


@pytest.mark.parametrize("matched, sides", [("none", ()), ("encoder", ("down",)), ("decoder", ("up",)),
                                            ("both", ("down", "up"))])
def test_features_are_matched_after_all_blocks_but_the_first(matched, sides):
    """Table 4(c), and "we apply it after all blocks except for the first one"."""
    D = tiny_discriminator(matched=matched).eval()
    blocks = dict(zip(("down", "up"), D.unet.encode_decode(pictures())))
    expected = [blocks[side][i] for side in sides for i in (1, 2, 3)]
    for i, (f, e) in enumerate(zip(D.everything(pictures())[2], expected, strict=True)):
        assert torch.equal(f, e), f"feature {i} of {matched}"


def test_a_patch_head_is_convolution_of_stride_2_then_convolution_norm_relu():
    """By hand: conv of stride 2, ReLU, three times conv, batch norm, ReLU, conv to one score."""
    torch.manual_seed(0)
    head, psi = patch_head(5, 6), torch.randn(3, 5, 8, 12)
    y, layers = psi, [m for m in head if isinstance(m, nn.Conv2d)]
    assert len(layers) == 5
    for i, layer in enumerate(layers):
        y = F.conv2d(y, layer.weight, layer.bias, stride=2 if i == 0 else 1, padding=1)
        if i in (1, 2, 3):
            mean, var = y.mean(dim=(0, 2, 3), keepdim=True), y.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
            y = (y - mean) / (var + 1e-5).sqrt()
        y = torch.where(y > 0, y, 0) if i < 4 else y
    assert y.shape == (3, 1, 4, 6)
    assert_is(head(psi).detach(), y.detach(), "the head does something else, or in another order")


def test_a_patch_head_can_tell_two_batches_by_their_mean_score():
    """Real and generated pictures come in separate batches. With the batch norm right before the last convolution,
    the mean score of maps of one pixel would be its bias, and L_ms could not fall below 2."""
    torch.manual_seed(0)
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
    for unknown in (dict(patch="middle"), dict(matched="middle")):
        with pytest.raises(ValueError, match="middle.*none, encoder, decoder, both"):
            tiny_discriminator(**unknown)
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

def random_case(seed=0):
    """Logits for real and generated pictures (B, C + 1, H, W), and labels (B, H, W) of classes 0 and 2 of three."""
    random = torch.Generator().manual_seed(seed)
    real_logits, fake_logits = (2 * torch.randn(B, C + 1, H, W, generator=random) for _ in range(2))
    return real_logits, fake_logits, 2 * torch.randint(2, (B, H, W), generator=random)


def counts_of(label_map, classes=C):
    return label_map.flatten().bincount(minlength=classes)


def loops_eq4(label_map, classes=C):
    """alpha_c (DP-GAN Eq. 4) over a batch: all pixels over those of class c; 0 where there are none."""
    pixels = label_map.flatten().tolist()
    return [len(pixels) / pixels.count(c) if c in pixels else 0.0 for c in range(classes)]


def test_dpgan_eq4_class_weights_are_the_papers_inverse_frequencies():
    """(DP-GAN Eq. 4) by loops; class 1 does not occur."""
    label_map = random_case()[2]
    assert_is(class_weights(counts_of(label_map)), loops_eq4(label_map), "alpha is not B H W / n_c")


def test_dpgan_eq4_by_hand():
    """(DP-GAN Eq. 4) 8, 4, 0 and 4 pixels of 16, the first class unknown: its pixels count, its weight is 0. OASIS's
    further 1/K would make 2 and 2 of 4 and 4."""
    counts = torch.tensor([8, 4, 0, 4])
    assert_is(class_weights(counts), [2.0, 4.0, 0.0, 4.0], "16 / n_c")
    assert_is(class_weights(counts, unknown=0), [0.0, 4.0, 0.0, 4.0], "the unknown class gets 0")
    assert counts.tolist() == [8, 4, 0, 4], "the counts of the caller were changed"


def test_dpgan_eq4_is_the_expectation_where_every_image_is_alike():
    """(DP-GAN Eq. 4) Two copies of one image, no class missing: the mean over images of H W / n_c, as printed."""
    image = [[0, 0, 1], [2, 2, 2]]
    expected = [sum(6 / sum(row.count(c) for row in image) for _ in range(2)) / 2 for c in range(3)]
    assert_is(class_weights(counts_of(torch.tensor([image, image]))), expected, "E_l[H W / n_c]")


def loops_own_class(logits, label_map, alpha):
    """- E sum_c alpha_c sum_xy l_xyc log D_xyc: of real pictures in (DP-GAN Eq. 3), of generated ones in (DP-GAN Eq. 7)."""
    total, (B, H, W) = 0.0, label_map.shape
    for b in range(B):
        for y in range(H):
            for x in range(W):
                for c in range(len(alpha)):
                    l_c = 1 if label_map[b, y, x].item() == c else 0
                    total -= alpha[c] * l_c * math.log(probability(logits, b, c, y, x)) / B
    return total


def loops_eq3(real_logits, fake_logits, label_map, alpha):
    """L_pixel (DP-GAN Eq. 3)."""
    B, H, W = label_map.shape
    return loops_own_class(real_logits, label_map, alpha) - sum(
        math.log(probability(fake_logits, b, -1, y, x)) for b in range(B) for y in range(H) for x in range(W)) / B


def test_dpgan_eq3_pixel_loss_is_losses_discriminator_loss():
    """(DP-GAN Eq. 3) by loops, with the alpha of DP-GAN Eq. 4: gamma 0 and no smoothing."""
    *logits, label_map = random_case()
    found = discriminator_loss(*logits, label_map, class_weights(counts_of(label_map)), gamma=0.0, smoothing=0.0)
    assert_is(found, loops_eq3(*logits, label_map, loops_eq4(label_map)), "L_pixel is not the sum of DP-GAN Eq. 3")


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


def test_dpgan_eq5_by_hand():
    """(DP-GAN Eq. 5) Real scores of 3 and 0 cost 0 and 1, generated ones of -3 and 1 cost 0 and 2."""
    real, fake = torch.tensor([3.0, 0.0]).view(2, 1, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)
    assert_is(patch_discriminator_loss([real], [fake]), 1 / 2 + 2 / 2, "(0 + 1) / 2 + (0 + 2) / 2")


def loops_eq6(real, fake):
    """L_fm (DP-GAN Eq. 6), one pixel at a time, then the mean over layers."""
    layers = []
    for x, g in zip(real, fake):
        B, C_i, H_i, W_i = x.shape
        total = 0.0
        for b in range(B):
            for i in range(H_i):
                for j in range(W_i):
                    total += sum((p - q) ** 2 for p, q in zip(x[b, :, i, j].tolist(), g[b, :, i, j].tolist()))
        layers.append(total / (C_i * H_i * W_i) / B)
    return mean_of(layers)


def test_dpgan_eq6_feature_matching_is_the_papers_norm():
    """(DP-GAN Eq. 6) by loops: two layers with 3 and 4 channels, averaged (the released code adds them up)."""
    real, fake = random_layers(0, 3), random_layers(1, 3)
    assert_is(feature_matching_loss(real, fake), loops_eq6(real, fake), "L_fm is not DP-GAN Eq. 6")


def one_step(**changes):
    """D, a batch of two pictures of 16x16, generated pictures, and the options of a step; weights unlike 1 tell terms apart."""
    random = torch.Generator().manual_seed(0)
    batch = {"real": pictures(2, 16, 16, seed=1), "label_map": label_maps(2, 16, 16), "z_1": noise(),
             "flips": torch.rand(2, CLASSES, generator=random) < 0.5}
    args = dict(gamma=0.0, label_smoothing=0.0, lambda_gan=0.7, lambda_patch=0.5, lambda_fm=3.0, lambda_lm=5.0)
    return tiny_discriminator().eval(), batch, loops_eq4(batch["label_map"], CLASSES), SimpleNamespace(**{**args, **changes})


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


def test_dpgan_eq7_patch_term_by_hand():
    """(DP-GAN Eq. 7) A hinge, as printed: scores of 3 and -1 cost 0 and 2. The released code has -mean, here -1."""
    assert_is(patch_generator_loss([torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)]), 1.0, "(0 + 2) / 2")


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
                mean_of((x - g).square().mean() for x, g in pairs), mean_of((1 - g).clamp_min(0).mean() for _, g in pairs)]
    for loss, e in zip(losses, expected):
        assert loss.dtype == torch.float32
        assert_is(loss, e.item(), "rounded to bf16", rtol=1e-5, atol=0)
