"""OASIS, baselines/oasis.py: its two networks against its layer tables, and LabelMix (DP-GAN Eq. 8).

    python -m pytest tests/test_oasis.py          (from the repository root; a few seconds on a CPU)

Oracles: DP-GAN Eq. 8 by plain Python loops; parameter counts added up by hand, and 71.1 M of DP-GAN's Table 5; the
UNet written once more, in the order of OASIS's paper. Networks are tiny here, full size on the meta device only. They
start from a gain of 0.02, which makes tiny numbers: `awake` enlarges what spectral norm does not hold.
"""
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import generator
from baselines import dpgan, latency
from baselines.oasis import (Discriminator, Generator, initialise, label_mix, label_mix_loss, label_mix_mask,
                             noise_and_labels)
from generator import SPADEBlock, parameters_by_part
from support.errors import InputError
from test_discriminator import pictures
from test_generator import (CLASSES, assert_every_image_follows_its_own_z, assert_grows_into_a_picture, assert_is,
                            assert_refuses_what_does_not_fit, blocks_of, conv, full_size, image_pyramid, label_maps,
                            largest_singular_values, noise, spade, without_gradient)

TINY = dict(widths=(8, 8, 8, 6, 6, 4), z_dim=6, hidden=7)           # five scales: sides divisible by 16
LEVELS = {4: ((6, 7, 8, 9), (8, 7, 6, 5)), 5: ((4, 4, 6, 8, 8), (8, 6, 6, 4, 5))}
SKIPPED = ("generator.spectral_norm", "discriminator.spectral_norm", "baselines.oasis.initialise")


def awake(net, times=40):
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not hasattr(module, "parametrizations"):
            module.weight.data.mul_(times)
    return net


def tiny_generator(offset_channels=0, **changes):
    torch.manual_seed(0)
    return awake(Generator(CLASSES, offset_channels, **{**TINY, **changes})).eval()


def tiny_discriminator(levels=4):
    torch.manual_seed(0)
    return awake(Discriminator(CLASSES, *LEVELS[levels]))


# ------------------------------------------------------------------------------------ parameters, by hand

@pytest.mark.parametrize("dataset, classes, total", [
    ("cityscapes", 35, 71_107_523), ("ade20k", 151, 74_314_691), ("coco_stuff", 183, 75_199_427)])
def test_parameters_of_the_generator_at_full_size(dataset, classes, total, monkeypatch):
    """71.1 M at 35 classes are DP-GAN's Table 5; the other two were measured on OASIS's networks. Every SPADE has 3x3
    to 128 hidden channels, from there one 3x3 each for gamma and beta."""
    inputs = 64 + classes
    by_hand = {"first": conv(inputs, 1024), "to_image": conv(64, 3),
               "blocks": image_pyramid(lambda channels: conv(inputs, 128) + spade(channels, 128))}
    G = full_size(lambda: Generator(classes), monkeypatch, *SKIPPED)
    assert parameters_by_part(G) == by_hand, f"{dataset}: a part differs from the layer table (right: by hand)"
    assert sum(by_hand.values()) == total, f"{dataset}: {by_hand}"


@pytest.mark.parametrize("classes, total", [(35, 22_251_364), (151, 22_258_904), (183, 22_260_984)])
def test_parameters_and_sizes_of_the_discriminator_at_full_size(classes, total, monkeypatch):
    """DP-GAN's Table 7: (input, output) of every block; two 3x3, and a 1x1 where the width changes."""
    encoder = ((3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512))
    decoder = ((512, 512), (1024, 256), (512, 256), (512, 128), (256, 128), (256, 64))

    def blocks(pairs):
        return sum(conv(i, o) + conv(o, o) + (conv(i, o, 1) if i != o else 0) for i, o in pairs)

    by_hand = {"encoder": blocks(encoder), "decoder": blocks(decoder), "to_logits": conv(64, classes + 1, 1)}
    D = full_size(lambda: Discriminator(classes), monkeypatch, *SKIPPED)
    assert parameters_by_part(D) == by_hand, "a part differs from Table 7 (right: by hand)"
    assert sum(by_hand.values()) == total, f"{sum(by_hand.values()):,}"
    image = torch.empty(1, 3, 256, 256, device="meta")
    down, up = D.encode_decode(image)
    assert [tuple(f.shape[1:]) for f in down] == [(128, 128, 128), (128, 64, 64), (256, 32, 32), (256, 16, 16),
                                                  (512, 8, 8), (512, 4, 4)]
    assert [tuple(f.shape[1:]) for f in up] == [(512, 8, 8), (256, 16, 16), (256, 32, 32), (128, 64, 64),
                                                (128, 128, 128), (64, 256, 256)]
    assert D(image).shape == (1, classes + 1, 256, 256)


def test_convolutions_start_from_xavier_with_gain_0_02():
    """Standard deviation 0.02 sqrt(2 / (fan_in + fan_out)), biases 0; gamma and beta have fan-outs of their own."""
    torch.manual_seed(0)
    block = SPADEBlock(96, 64, 40, "zeros", hidden=48)
    initialise(block)
    for name, layer in ((n, m) for n, m in block.named_modules() if isinstance(m, nn.Conv2d)):
        weight = layer.parametrizations.weight.original if hasattr(layer, "parametrizations") else layer.weight
        for part in weight.detach().chunk(2 if "gamma_beta" in name else 1):
            o, i, h, w = part.shape
            expected = 0.02 * math.sqrt(2 / (i*h*w + o*h*w))
            assert abs(part.std() / expected - 1) < 0.05, f"{name}: {part.std():.2e}, expected {expected:.2e}"
            assert abs(part.mean()) < 0.05 * expected, f"{name} is not centred"
        assert layer.bias is None or not layer.bias.any(), f"{name}: the bias must start at 0"


def test_spectral_norm_knows_the_new_weights():
    """The largest singular value of a weight under spectral norm is 1 from the start, not only after training."""
    torch.manual_seed(0)
    nets = [Generator(CLASSES, widths=(48, 48, 32)), Discriminator(CLASSES, (32, 48), (48, 32))]
    found = [s for net in nets for s in largest_singular_values(net.eval()).values() if s is not None]
    assert len(found) == 5 + 6 + 5 and all(0.99 < sigma < 1.1 for sigma in found), found


# ------------------------------------------------------------------------------------------------ generator

def loops_input(label_map, z, offsets):
    """z at every pixel, then the one-hot labels, then the offsets, one number at a time."""
    (B, H, W), d_z = label_map.shape, z.shape[1]
    x = torch.zeros(B, d_z + CLASSES + (0 if offsets is None else 2), H, W)
    for b, i, j in np.ndindex(B, H, W):
        for k in range(d_z):
            x[b, k, i, j] = z[b, k]
        x[b, d_z + label_map[b, i, j], i, j] = 1
        for k in range(0 if offsets is None else 2):
            x[b, d_z + CLASSES + k, i, j] = offsets[b, k, i, j]
    return x


@pytest.mark.parametrize("offset_channels", [0, 2])
def test_the_input_is_noise_then_labels_then_offsets(offset_channels):
    """DP-GAN, Tables 6 and 8: "Concatenate z, y"."""
    offsets = torch.randn(2, 2, 16, 32, generator=torch.Generator().manual_seed(3)) if offset_channels else None
    x = noise_and_labels(tiny_generator(offset_channels), label_maps(2, 16, 32), noise(), offsets)
    assert_is(x, loops_input(label_maps(2, 16, 32), noise(), offsets), "channels are not z, one-hot, offsets")
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_every_scale_sees_noise_and_labels_at_its_own_size():
    """The first convolution at 1/16, block i at 1/2^(4-i): every so many-th pixel of z and one-hot labels."""
    G, label_map = tiny_generator(), label_maps(2, 32, 48)
    x = loops_input(label_map, noise(), None)
    assert_grows_into_a_picture(G, x[:, :, ::16, ::16], label_map, noise())
    for i, (_, condition, _) in enumerate(blocks_of(G, label_map, noise())[2]):
        stride = 2 ** (4 - i)
        assert_is(condition, x[:, :, ::stride, ::stride], f"block {i} must be conditioned at 1/{stride}")


def tiny_dpgan():
    return dpgan.Generator(CLASSES, widths=TINY["widths"], stem_channels=5, label_channels=4, z_dim=6)


@pytest.mark.parametrize("make", [tiny_generator, tiny_dpgan, tiny_discriminator])
def test_what_cudas_autocast_resizes_in_float32_goes_on_in_bf16(make, monkeypatch):
    """As in generator.py and discriminator.py: SPADE and the blocks would else read and write twice the bytes."""
    net, seen, resize = make(), [], F.interpolate

    def in_float32(x, *args, **options):
        return resize(x.float() if x.is_floating_point() else x, *args, **options)

    monkeypatch.setattr(F, "interpolate", in_float32)
    for block in [*getattr(net, "blocks", [])[1:], *getattr(net, "decoder", [])]:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.rand(2, 3, 64, 64)) if make is tiny_discriminator else net(
            torch.zeros(2, 64, 64, dtype=torch.int64), torch.randn(2, net.z_dim))
    assert set(seen) == {torch.bfloat16}


def test_every_image_follows_its_own_z():
    assert_every_image_follows_its_own_z(tiny_generator())


def test_gradient_reaches_every_parameter_of_the_generator():
    """But for the bias of each conv_0, which the batch norm behind it takes out again."""
    G = tiny_generator(offset_channels=2).train()
    (G(label_maps(), noise(), pictures(seed=1)[:, :2]) * pictures(seed=2)).sum().backward()
    assert not [name for name in without_gradient(G) if not name.endswith("conv_0.bias")]


def test_the_generator_refuses_what_does_not_fit():
    assert_refuses_what_does_not_fit(tiny_generator, 16)


# -------------------------------------------------------------------------------------------- discriminator

def reference_unet(D, image):
    """Table 7 in OASIS's own order: down = convolutions, then 2x2 means; up = activation, then twice the size, then
    convolutions; the first block has no activation and pools before its 1x1. -> down, up, logits"""
    def conv(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)

    rectified, half = lambda x: torch.where(x > 0, x, 0.2 * x), lambda x: F.avg_pool2d(x, 2)
    twice = lambda x: x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    down, up, x = [], [], image
    for i, block in enumerate(D.encoder):
        main = conv(block.conv_1, rectified(conv(block.conv_0, x if i == 0 else rectified(x))))
        x = half(main) + (conv(block.conv_s, half(x)) if x.shape[1] != main.shape[1] else half(x))
        down.append(x)
    n = len(down)
    for i, block in enumerate(D.decoder):
        x = x if i == 0 else torch.cat([up[i - 1], down[n - 1 - i]], dim=1)  # cat(up_i, down_(n-i))
        main = conv(block.conv_1, rectified(conv(block.conv_0, twice(rectified(x)))))
        x = main + twice(conv(block.conv_s, x) if x.shape[1] != main.shape[1] else x)
        up.append(x)
    return down, up, torch.einsum("kc,bchw->bkhw", D.to_logits.weight[:, :, 0, 0], x) + D.to_logits.bias[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("levels", LEVELS)
def test_the_unet_is_table_7(levels):
    """Every block, every skip and the logits, at 4 and 5 levels and on a picture that is not square."""
    D, image = tiny_discriminator(levels).eval(), pictures(2, 64, 32)
    for layer in (m for m in D.modules() if isinstance(m, nn.Conv2d)):
        nn.init.normal_(layer.bias)
    down, up, logits = reference_unet(D, image)
    for name, found, expected in zip(("down", "up"), D.encode_decode(image), (down, up)):
        assert len(found) == levels
        for i, (f, e) in enumerate(zip(found, expected), 1):
            assert_is(f, e, f"{name}_{i}")
    assert_is(D(image), logits, "the logits are not a 1x1 convolution of the last block")


def test_gradient_reaches_every_parameter_of_the_discriminator_and_the_picture():
    D, image = tiny_discriminator(), pictures().requires_grad_()
    D(image).square().sum().backward()
    assert not without_gradient(D) and image.grad.any()


def assert_has_no_backbone(D):
    """The training loop asks every discriminator for its features. In eval mode D repeats itself."""
    image = pictures(2, 32, 48)
    assert D.backbone is None and D.features(image) is None and torch.equal(D(image, None), D(image))
    with pytest.raises(ValueError, match="32x40.*divisible by 16"):
        D(pictures(1, 32, 40))


def test_the_discriminator_has_no_backbone():
    assert_has_no_backbone(tiny_discriminator().eval())


# ------------------------------------------------------------------------------------------------- LabelMix

def loops_mask(label_map, flips):
    """M[b, y, x] = flips[b, label of that pixel], (B, 1, H, W)."""
    return torch.tensor([[[[flips[b][t] for t in row] for row in image]] for b, image in enumerate(label_map.tolist())])


def test_the_mask_has_one_coin_for_each_image_and_class():
    random = torch.Generator().manual_seed(0)
    label_map = torch.randint(CLASSES, (3, 4, 6), generator=random)
    flips = torch.rand(3, CLASSES, generator=random) < 0.5
    M = label_mix_mask(label_map, flips)
    assert M.dtype == torch.bool and torch.equal(M, loops_mask(label_map, flips.tolist()))


def test_the_coins_are_independent_between_images_and_classes():
    """1000 draws for two images with one label map of two classes. OASIS's code shared the coins between images, and
    flipped class 0 again as class 1: P(class 0 real) was 1/4, and the two classes agreed in 3/4 of the cases."""
    random = torch.Generator().manual_seed(0)
    label_map = torch.tensor([[[0, 1]], [[0, 1]]])                                      # (2, 1, 2)
    masks = torch.stack([label_mix_mask(label_map, torch.rand(2, 2, generator=random) < 0.5)
                         for _ in range(1000)]).flatten(1).float()                      # (1000, 4): image, class
    assert ((masks.mean(dim=0) - 0.5).abs() < 0.06).all(), f"real in {masks.mean(dim=0).tolist()} of the cases"
    agree = (masks[:, :, None] == masks[:, None]).float().mean(dim=0)                   # (4, 4)
    assert ((agree - 0.5).abs() < 0.06).logical_or(torch.eye(4) > 0).all(), f"coins (image, class) agree in {agree}"


def mix_case(seed=0, B=2, K=3, H=2, W=3):
    random = torch.Generator().manual_seed(seed)
    logits = [torch.randn(B, K, H, W, generator=random) for _ in range(3)]
    return *logits, torch.rand(B, 1, H, W, generator=random) < 0.5


def loops_eq8(mixed, real, fake, M):
    """L_LM (DP-GAN Eq. 8), M = 1 taking the real side: the squared norm over its number of terms."""
    total = 0.0
    for b, k, y, x in np.ndindex(mixed.shape):
        m = 1.0 if M[b, 0, y, x] else 0.0
        label_mixed = m * real[b, k, y, x].item() + (1 - m) * fake[b, k, y, x].item()
        total += (mixed[b, k, y, x].item() - label_mixed) ** 2
    return total / mixed.numel()


def test_dpgan_eq8_label_mix_loss_is_the_papers_norm():
    """(DP-GAN Eq. 8) by loops."""
    mixed, real, fake, M = mix_case()
    assert 0 < M.sum() < M.numel(), "the case must have pixels of both kinds"
    assert_is(label_mix_loss(mixed, real, fake, M), loops_eq8(mixed, real, fake, M), "L_LM is not DP-GAN Eq. 8")


def test_dpgan_eq8_mixes_pictures_as_it_mixes_logits():
    """(DP-GAN Eq. 8) LabelMix(x, x^, M) = M x + (1 - M) x^, and a D that works pixel by pixel then pays nothing."""
    _, real, fake, M = mix_case()
    mixed = label_mix(real, fake, M)
    assert_is(mixed, M.float() * real + (1 - M.float()) * fake, "LabelMix is not M x + (1 - M) x^")
    assert label_mix_loss(torch.sin(mixed), torch.sin(real), torch.sin(fake), M) == 0


def test_dpgan_eq8_gradient_flows_through_all_three_logits():
    """(DP-GAN Eq. 8) Nothing is detached: 2 (mixed - target) / n on the mixed side, its negative where M points."""
    mixed, real, fake, M = mix_case()
    for logits in (mixed, real, fake):
        logits.requires_grad_()
    label_mix_loss(mixed, real, fake, M).backward()
    expected = 2 * (mixed - label_mix(real, fake, M)).detach() / mixed.numel()
    assert_is(mixed.grad, expected, "the mixed side")
    assert_is(real.grad, -expected * M, "the real side learns where M is 1")
    assert_is(fake.grad, -expected * ~M, "the generated side learns where M is 0")


def test_dpgan_eq8_computes_in_float32():
    """(DP-GAN Eq. 8) bf16 logits that differ by less than bf16 can square and add."""
    mixed, real, fake, M = (t.bfloat16() if t.is_floating_point() else t for t in mix_case(H=32, W=32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_mix_loss(mixed, real, fake, M)
    assert loss.dtype == torch.float32
    assert_is(loss, (mixed.double() - label_mix(real.double(), fake.double(), M)).square().mean().item(),
              "the squares were rounded to bf16", rtol=1e-5, atol=0)


def test_latency_names_each_network_and_its_time_over_oasis(monkeypatch, capsys):
    """With a clock that counts FLOPs, of float32 a nanosecond each and of bf16 half of it, the ratios are theirs."""
    def seconds_of(run, device):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / 1e9 / (2 if torch.is_autocast_enabled("cpu") else 1)
    tiny = {"dp-sims": partial(generator.Generator, widths=(8, 8, 4), label_channels=4, stem_channels=4),
            "oasis": partial(Generator, **TINY), "dpgan": partial(dpgan.Generator, widths=(8, 8, 4))}
    monkeypatch.setattr(latency, "seconds_of", seconds_of)
    monkeypatch.setattr(latency, "GENERATORS", tiny)
    latency.main(["--image-size", "32x64", "--runs", "3", "--device", "cpu"])
    head, *rows, protocol = capsys.readouterr().out.splitlines()
    found = [re.match(r"(\S+) +([\d,]+) +([\d.]+) +([\d.]+) ms \+- ([\d.]+), ([\d.]+) +([\d.]+) ms .*, ([\d.]+)", row)
             for row in rows]
    assert [row[1] for row in found] == list(tiny)
    for row in found:
        assert int(row[2].replace(",", "")) == sum(p.numel() for p in tiny[row[1]](151).parameters())
        flops = float(row[3])                                              # printed to a tenth of a GFLOP
        assert float(row[4]) == pytest.approx(1e3 * flops, abs=51) and float(row[5]) == 0
        assert float(row[7]) == pytest.approx(float(row[4]) / 2, abs=0.01)
        assert float(row[6]) == float(row[8]) == pytest.approx(float(row[4]) / float(found[1][4]), abs=0.006)
    assert "32x64 (height x width)" in protocol and "of 3 runs" in protocol
    with pytest.raises(InputError, match="--image-size 32x40: both sides must be divisible by 32"):
        latency.main(["--image-size", "32x40"])
