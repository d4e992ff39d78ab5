"""DP-GAN as a baseline: its numbered equations against plain loops, parameter counts by hand, gradients.

    python -m pytest tests/test_dpgan.py

Eq. 8 (LabelMix) is in test_oasis.py; Eq. 9, the sum, is checked on a training step in test_rows.py.
"""
import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from baselines.dpgan import (PATCH_LEVELS, Discriminator, Generator, class_weights, feature_matching_loss,
                             patch_discriminator_loss, patch_generator_loss)
from generator import SPADE
from losses import discriminator_loss, generator_loss

SMALL = dict(widths=(16, 16, 8, 8), stem_channels=4, label_channels=8, z_dim=4)
SMALL_D = dict(encoder_widths=(8, 8, 12, 12), decoder_widths=(12, 8, 8, 8), head_channels=4)
B, C, H, W = 2, 3, 2, 3


def conv(i, o, k, bias=True):
    return i * o * k * k + o * bias


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("classes, published", [(35, 69.5), (151, 70.6), (183, 70.9)])
@pytest.mark.parametrize("concatenate_last", [True, False])
def test_the_generator_has_the_published_parameters(classes, published, concatenate_last):
    """69.5 M is the line "Ours" of the supplement's Table 5; Tables 6 and 8 counted by hand."""
    channels, widths = 64 + classes, (1024, 1024, 1024, 512, 256, 128, 64)
    condition = 128 if concatenate_last else 64
    expected = conv(channels, 32, 3) + 2 * 32 + conv(32, 64, 3) + 2 * 64 + 5 * (conv(64, 64, 3) + 2 * 64)
    expected += conv(channels, 1024, 3) + conv(64, 3, 3)
    for i, o in zip(widths, widths[1:]):
        middle = min(i, o)
        for normed in (i, middle) + ((i,) if i != o else ()):
            expected += 2 * conv(condition, normed, 3)
        expected += conv(i, middle, 3) + conv(middle, o, 3) + (conv(i, o, 1, bias=False) if i != o else 0)
    with torch.device("meta"):
        found = parameters(Generator(classes, concatenate_last=concatenate_last))
    assert found == expected and (not concatenate_last or round(found / 1e6, 1) == published)


def test_the_discriminator_has_the_published_parameters():
    """22.9 M, of which the two patch heads 0.67 M."""
    with torch.device("meta"):
        D = Discriminator(35)
    heads = sum(conv(i, 64, 3) + 3 * (conv(64, 64, 3) + 2 * 64) + conv(64, 1, 3) for i in (256, 512))
    assert parameters(D.heads) == heads and round(heads / 1e6, 3) == 0.666
    assert round(parameters(D) / 1e6, 1) == 22.9


@pytest.mark.parametrize("H, W", [(16, 16), (16, 32)])
def test_shapes(H, W):
    torch.manual_seed(0)
    G = Generator(5, offset_channels=2, **SMALL)
    image, features = G(torch.randint(5, (2, H, W)), torch.randn(2, 4), torch.zeros(2, 2, H, W), return_features=True)
    assert image.shape == (2, 3, H, W) and features.shape == (2, 8, H, W) and image.abs().max() <= 1
    logits, scores, matched = Discriminator(5, **SMALL_D)(image, return_all=True)
    assert logits.shape == (2, 6, H, W)
    assert [s.shape for s in scores] == [(2, 1, H // 8, W // 8), (2, 1, 1, 1)]  # half of 1/4 and of 1/16
    assert [f.shape for f in matched] == [(2, 8, H // 4, W // 4), (2, 8, H // 2, W // 2), (2, 8, H, W)]


def test_full_size_supervision_sits_where_table_7_says():
    """Patch heads see 16x16 and 4x4 of a 256x256 picture; features are matched after all decoder blocks but the first."""
    with torch.device("meta"):
        D, image = Discriminator(35).eval(), torch.zeros(1, 3, 256, 256)
        logits, scores, matched = D(image, return_all=True)
    assert [head[0].in_channels for head in D.heads] == [256, 512]
    assert [tuple(s.shape[2:]) for s in scores] == [(8, 8), (2, 2)]
    assert [tuple(f.shape[1:]) for f in matched] == [(256, 16, 16), (256, 32, 32), (128, 64, 64), (128, 128, 128), (64, 256, 256)]


@pytest.mark.parametrize("patch, matched, heads, features", [
    ("none", "none", 0, 0), ("encoder", "encoder", 2, 3), ("decoder", "decoder", 2, 3), ("both", "both", 4, 6)])
def test_rows_of_table_4b_and_4c(patch, matched, heads, features):
    D = Discriminator(5, patch=patch, matched=matched, **SMALL_D)
    _, scores, found = D(torch.rand(2, 3, 32, 32), return_all=True)
    assert len(scores) == len(D.heads) == heads and len(found) == features


def test_labels_noise_and_the_last_map_reach_the_picture():
    torch.manual_seed(0)
    for concatenate_last in (True, False):
        G = Generator(5, concatenate_last=concatenate_last, **SMALL)
        for p in G.parameters():
            if p.ndim == 4:
                nn.init.xavier_normal_(p.data)
        labels, z = torch.randint(5, (2, 16, 16)), torch.randn(2, 4)
        G(labels, z).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in G.parameters())
        G.eval()
        assert (G(labels, z) - G(labels, z + 1)).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------ generator

def test_dpgan_eq1_spade_is_normalisation_scale_and_shift():
    """gamma (h - mu) / sigma + beta by loops, mu and sigma over images and pixels; gamma is 1 + what is convolved."""
    torch.manual_seed(0)
    spade, h, condition = SPADE(2, 3), torch.randn(2, 2, 2, 3), torch.randn(2, 3, 2, 3)
    gamma, beta = spade.to_gamma_beta(condition).chunk(2, dim=1)
    expected = torch.empty_like(h)
    for c in range(2):
        values = [h[n, c, y, x].item() for n in range(2) for y in range(2) for x in range(3)]
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + 1e-5)
        for n in range(2):
            for y in range(2):
                for x in range(3):
                    expected[n, c, y, x] = (1 + gamma[n, c, y, x]) * (h[n, c, y, x] - mu) / sigma + beta[n, c, y, x]
    torch.testing.assert_close(spade(h, condition), expected)


def test_dpgan_eq2_every_block_is_conditioned_on_its_map_and_the_last_one():
    """What arrives at block i: s_i, then s_0 enlarged, weighed by loops of the bilinear rule."""
    torch.manual_seed(0)
    G, seen, made = Generator(5, **SMALL).eval(), [], []
    for block in G.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for block in G.label_pyramid:
        block.register_forward_hook(lambda _, __, output: made.append(output))
    G(torch.randint(5, (1, 16, 16)), torch.randn(1, 4))
    s_0 = made[-1]
    for i, condition in enumerate(seen):
        s_i = made[-1 - i]
        assert torch.equal(condition[:, :8], s_i), f"block {i}: its own map"
        n, m = s_0.shape[2], s_i.shape[2]
        for y in range(m):
            for x in range(m):
                v = min(max((y + 0.5) * n / m - 0.5, 0), n - 1)
                u = min(max((x + 0.5) * n / m - 0.5, 0), n - 1)
                a, b = min(int(v), n - 2), min(int(u), n - 2)
                fy, fx = v - a, u - b
                expected = ((1 - fy) * (1 - fx) * s_0[0, :, a, b] + (1 - fy) * fx * s_0[0, :, a, b + 1]
                            + fy * (1 - fx) * s_0[0, :, a + 1, b] + fy * fx * s_0[0, :, a + 1, b + 1])
                torch.testing.assert_close(condition[0, 8:, y, x], expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------- losses

def random_case():
    random = torch.Generator().manual_seed(0)
    real, fake = 2 * torch.randn(2, B, C + 1, H, W, generator=random)
    return real, fake, torch.randint(C, (B, H, W), generator=random)


def log_p(logits, b, k, y, x):
    return logits[b, k, y, x].item() - math.log(sum(math.exp(logits[b, j, y, x].item()) for j in range(C + 1)))


def test_dpgan_eq3_pixel_loss_is_ours_with_gamma_0_and_no_smoothing():
    real, fake, label_map = random_case()
    alpha = class_weights(torch.bincount(label_map.flatten(), minlength=C))
    first = second = 0.0
    for b in range(B):
        for y in range(H):
            for x in range(W):
                c = label_map[b, y, x].item()
                first += alpha[c].item() * log_p(real, b, c, y, x) / B
                second += log_p(fake, b, C, y, x) / B
    assert discriminator_loss(real, fake, label_map, alpha, 0.0, 0.0).item() == pytest.approx(-first - second, rel=1e-5)


def test_dpgan_eq4_class_weights_are_the_inverse_frequency():
    label_map = torch.tensor([[[0, 0, 0], [0, 1, 1]], [[0, 0, 3], [3, 3, 3]]])
    counts, expected = [0] * 4, [0.0] * 4
    for value in label_map.flatten().tolist():
        counts[value] += 1
    for c in (0, 1, 2):                                      # 3 is the unknown class
        expected[c] = 12 / counts[c] if counts[c] else 0.0   # B H W / n_c
    found = class_weights(torch.bincount(label_map.flatten(), minlength=4), unknown=3)
    torch.testing.assert_close(found, torch.tensor(expected))


def random_scores(seed):
    random = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(2, 1, n, n, generator=random) for n in (3, 1)]


def test_dpgan_eq5_patch_loss_is_a_hinge_averaged_over_heads():
    real, fake, total = random_scores(0), random_scores(1), 0.0
    for r, f in zip(real, fake):
        first = [min(-1 + v, 0) for v in r.flatten().tolist()]
        second = [min(-1 - v, 0) for v in f.flatten().tolist()]
        total += -sum(first) / len(first) - sum(second) / len(second)
    assert patch_discriminator_loss(real, fake).item() == pytest.approx(total / 2, rel=1e-5)


def test_dpgan_eq6_feature_matching_is_the_mean_squared_distance():
    random, total = torch.Generator().manual_seed(0), 0.0
    real, fake = ([torch.randn(2, c, n, n, generator=random) for c, n in ((3, 2), (2, 4))] for _ in range(2))
    for r, f in zip(real, fake):
        b, c, h, w = r.shape
        for n in range(b):
            squared = sum((r[n, :, y, x] - f[n, :, y, x]).square().sum().item() for y in range(h) for x in range(w))
            total += squared / (c * h * w) / b
    assert feature_matching_loss(real, fake).item() == pytest.approx(total / 2, rel=1e-5)
    for t in (*real, *fake):
        t.requires_grad_(True)
    feature_matching_loss(real, fake).backward()
    assert all(t.grad is None for t in real) and all(t.grad.abs().sum() > 0 for t in fake)


def test_dpgan_eq7_generator_loss_is_pixels_patches_and_features():
    _, fake, label_map = random_case()
    alpha = class_weights(torch.bincount(label_map.flatten(), minlength=C))
    pixel = -sum(alpha[label_map[b, y, x]].item() * log_p(fake, b, label_map[b, y, x].item(), y, x) / B
                 for b in range(B) for y in range(H) for x in range(W))
    assert generator_loss(fake, label_map, alpha, 0.0).item() == pytest.approx(pixel, rel=1e-5)
    scores, patch = random_scores(2), 0.0
    for s in scores:
        values = [min(-1 + v, 0) for v in s.flatten().tolist()]
        patch -= sum(values) / len(values) / len(scores)
    assert patch_generator_loss(scores).item() == pytest.approx(patch, rel=1e-5)


def test_patch_losses_train_the_heads_and_reach_the_picture():
    """The released code adds loss.item(): no head of it ever gets a gradient."""
    torch.manual_seed(0)
    D = Discriminator(5, patch="both", **SMALL_D)
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    patch_discriminator_loss(D(real, return_all=True)[1], D(fake.detach(), return_all=True)[1]).backward()
    for name, p in D.named_parameters():
        if name.startswith(("heads", "unet.encoder")):
            assert p.grad is not None and (p.grad.abs().sum() > 0 or "bias" in name), name
    patch_generator_loss(D(fake, return_all=True)[1]).backward()
    assert fake.grad.abs().sum() > 0


def test_losses_are_float32_under_autocast():
    scores, features = [s.bfloat16() for s in random_scores(0)], [torch.randn(2, 3, 2, 2).bfloat16()]
    with torch.autocast("cpu", torch.bfloat16):
        for loss in (patch_discriminator_loss(scores, scores), patch_generator_loss(scores),
                     feature_matching_loss(features, features)):
            assert loss.dtype == torch.float32


def test_patch_levels_are_the_rows_of_the_table():
    assert list(PATCH_LEVELS) == ["none", "encoder", "decoder", "both"]
