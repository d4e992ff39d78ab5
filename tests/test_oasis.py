"""OASIS as a baseline: parameter counts by hand, LabelMix (DP-GAN Eq. 8) against plain loops, gradients.

    python -m pytest tests/test_oasis.py
"""
import pytest
import torch
import torch.nn as nn

from baselines.oasis import Discriminator, Generator, label_mix_loss, label_mix_mask

SMALL = dict(widths=(16, 16, 8, 8), z_dim=4, hidden=8)                # downsampling 4
SMALL_D = dict(encoder_widths=(8, 8, 12), decoder_widths=(12, 8, 8))  # downsampling 8


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def conv(i, o, k, bias=True):
    return i * o * k * k + o * bias


@pytest.mark.parametrize("classes, published", [(35, 71.1), (151, 74.3), (183, 75.2)])
def test_the_generator_has_the_published_parameters(classes, published):
    """71.1 M is OASIS's line of DP-GAN's supplement, Table 5; and every convolution counted by hand."""
    channels, widths = 64 + classes, (1024, 1024, 1024, 512, 256, 128, 64)
    expected = conv(channels, 1024, 3) + conv(64, 3, 3)
    for i, o in zip(widths, widths[1:]):
        middle = min(i, o)
        for normed in (i, middle) + ((i,) if i != o else ()):         # SPADE: hidden convolution, gamma, beta
            expected += conv(channels, 128, 3) + 2 * conv(128, normed, 3)
        expected += conv(i, middle, 3) + conv(middle, o, 3) + (conv(i, o, 1, bias=False) if i != o else 0)
    with torch.device("meta"):
        found = parameters(Generator(classes))
    assert found == expected and round(found / 1e6, 1) == published


@pytest.mark.parametrize("classes", [35, 151])
def test_the_discriminator_has_the_published_parameters(classes):
    """22.3 M; the blocks of DP-GAN's supplement, Table 7."""
    blocks = [(3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512),
              (512, 512), (1024, 256), (512, 256), (512, 128), (256, 128), (256, 64)]
    expected = conv(64, classes + 1, 1)
    for i, o in blocks:
        expected += conv(i, o, 3) + conv(o, o, 3) + (conv(i, o, 1) if i != o else 0)
    with torch.device("meta"):
        found = parameters(Discriminator(classes))
    assert found == expected and round(found / 1e6, 1) == 22.3


@pytest.mark.parametrize("H, W", [(16, 16), (8, 24)])
def test_shapes_ranges_and_features(H, W):
    torch.manual_seed(0)
    G = Generator(5, **SMALL)
    image, features = G(torch.randint(5, (2, H, W)), torch.randn(2, 4), return_features=True)
    assert image.shape == (2, 3, H, W) and features.shape == (2, 8, H, W) and image.abs().max() <= 1
    D = Discriminator(5, **SMALL_D)
    logits, scores, matched = D(image, return_all=True)
    assert logits.shape == (2, 6, H, W) and scores == [] and matched == [] and D.backbone is None
    torch.testing.assert_close(D.eval()(image), D(image))


@pytest.mark.parametrize("height, z_dim, offsets", [(18, 4, None), (16, 3, None), (16, 4, torch.zeros(2, 2, 16, 16))])
def test_inputs_that_do_not_fit_are_refused(height, z_dim, offsets):
    with pytest.raises(ValueError):
        Generator(5, **SMALL)(torch.zeros(2, height, 16, dtype=torch.int64), torch.zeros(2, z_dim), offsets)
    with pytest.raises(ValueError, match="divisible by 8"):
        Discriminator(5, **SMALL_D)(torch.zeros(2, 3, 12, 16))


def open_gates(net):
    """Weights large enough that every path is felt: OASIS starts with a gain of 0.02."""
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 4:
                nn.init.xavier_normal_(p)
    return net


def test_noise_labels_and_offsets_change_the_picture_and_noise_enters_every_block():
    torch.manual_seed(0)
    G = open_gates(Generator(5, offset_channels=2, **SMALL)).eval()
    labels, z, offsets = torch.randint(5, (1, 16, 16)), torch.randn(1, 4), torch.zeros(1, 2, 16, 16)
    image = G(labels, z, offsets)
    assert (G(labels, z + 1, offsets) - image).abs().max() > 1e-3
    assert (G((labels + 1) % 5, z, offsets) - image).abs().max() > 1e-3
    assert (G(labels, z, offsets + 0.5) - image).abs().max() > 1e-3
    G.train()
    G(labels, z, offsets).square().sum().backward()
    for name, p in G.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
        if "shared.0.weight" in name:
            assert p.grad[:, :4].abs().sum() > 0, f"no noise in {name}"


def test_gradient_reaches_every_parameter_of_the_discriminator_and_the_image():
    torch.manual_seed(0)
    D, image = open_gates(Discriminator(5, **SMALL_D)), torch.rand(2, 3, 16, 16, requires_grad=True)
    D(image).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in D.parameters())
    assert image.grad.abs().sum() > 0


def test_initialisation_survives_spectral_norm():
    """The weights under spectral norm start small (gain 0.02) and every bias at 0."""
    D = Discriminator(5)
    weight = D.encoder[3].conv_0.parametrizations.weight.original
    assert 0.02 * (2 / (9 * 512)) ** 0.5 == pytest.approx(weight.std().item(), rel=0.05)
    assert all(p.abs().sum() == 0 for name, p in D.named_parameters() if name.endswith("bias"))


def test_pooling_before_the_shortcut_is_pooling_after_it():
    """The first block pools before its 1x1 convolution, the others after it: the same numbers."""
    torch.manual_seed(0)
    block = open_gates(Discriminator(5, **SMALL_D)).encoder[2].eval()
    x = torch.randn(1, 8, 8, 8)
    y = block.conv_1(nn.functional.leaky_relu(block.conv_0(nn.functional.leaky_relu(x, 0.2)), 0.2))
    torch.testing.assert_close(block(x), nn.functional.avg_pool2d(y + block.conv_s(x), 2), rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------- LabelMix

def test_dpgan_eq8_label_mix_loss_is_the_papers():
    """L_LM by loops: the discriminator of the mixture against the mixture, pixel by pixel; here the mean."""
    torch.manual_seed(0)
    B, C, H, W = 2, 3, 2, 3
    mixed, real, fake = torch.randn(3, B, C + 1, H, W)
    mask = torch.rand(B, 1, H, W) < 0.5
    total = 0.0
    for b in range(B):
        for k in range(C + 1):
            for y in range(H):
                for x in range(W):
                    M = 1.0 if mask[b, 0, y, x] else 0.0
                    mixture = M * real[b, k, y, x].item() + (1 - M) * fake[b, k, y, x].item()
                    total += (mixed[b, k, y, x].item() - mixture) ** 2
    assert label_mix_loss(mixed, real, fake, mask).item() == pytest.approx(total / (B * (C + 1) * H * W), rel=1e-5)


def test_dpgan_eq8_gradient_flows_through_all_three():
    logits = [torch.randn(2, 4, 4, 4, requires_grad=True) for _ in range(3)]
    label_mix_loss(*logits, torch.rand(2, 1, 4, 4) < 0.5).backward()
    assert all(t.grad.abs().sum() > 0 for t in logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert label_mix_loss(*(t.bfloat16() for t in logits), torch.ones(2, 1, 4, 4, dtype=torch.bool)).dtype == torch.float32


def test_label_mix_mask_is_one_flip_for_each_image_and_class():
    label_map = torch.tensor([[[0, 1], [2, 1]], [[0, 1], [2, 1]]])
    flips = torch.tensor([[True, False, True], [False, True, True]])
    expected = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    for b in range(2):
        for y in range(2):
            for x in range(2):
                expected[b, 0, y, x] = flips[b, label_map[b, y, x]]
    assert torch.equal(label_mix_mask(label_map, flips), expected)


def test_label_mix_flips_are_independent():
    """Over 4,000 draws each class is real half the time, and two classes, or one class of two images, agree half the time."""
    random = torch.Generator().manual_seed(0)
    label_map = torch.arange(4).view(1, 1, 4).expand(2, 1, 4).contiguous()
    M = torch.stack([label_mix_mask(label_map, torch.rand(2, 4, generator=random) < 0.5) for _ in range(4000)]).view(4000, 8)
    share = (M[:, :, None] == M[:, None, :]).double().mean(dim=0)            # (8, 8) how often two of them agree
    assert (M.double().mean(dim=0) - 0.5).abs().max() < 0.04
    assert (share[~torch.eye(8, dtype=torch.bool)] - 0.5).abs().max() < 0.04
