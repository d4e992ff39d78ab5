"""OASIS, baselines/oasis.py: its two networks against its layer tables, and LabelMix (DP-GAN Eq. 8).

    python -m pytest tests/test_oasis.py          (from the repository root; a few seconds on a CPU)

Oracles: DP-GAN Eq. 8 by plain Python loops; parameter counts added up by hand, and 71.1 M of DP-GAN's Table 5; the
UNet written once more, in the order of OASIS's paper. Networks are tiny here, full size on the meta device only.

Both networks start from a gain of 0.02, which makes tiny numbers; `awake` enlarges what spectral norm does not hold.
"""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines.oasis import (Discriminator, Generator, initialise, label_mix, label_mix_loss, label_mix_mask,
                             noise_and_labels)
from generator import SPADEBlock, parameters_by_part

CLASSES = 5
TINY = dict(widths=(8, 8, 8, 6, 6, 4), z_dim=6, hidden=7)           # five scales: sides divisible by 16
LEVELS = {4: ((6, 7, 8, 9), (8, 7, 6, 5)), 5: ((4, 4, 6, 8, 8), (8, 6, 6, 4, 5))}


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


def label_maps(count=2, height=32, width=48, seed=1):
    random = torch.Generator().manual_seed(seed)
    blocks = torch.randint(CLASSES, (count, height // 4, width // 4), generator=random)
    return blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def noise(seed=0, count=2):
    return torch.randn(count, TINY["z_dim"], generator=torch.Generator().manual_seed(seed))


def pictures(count=2, height=32, width=48, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def assert_is(actual, expected, what, **tolerance):
    """Like assert_close, with a sentence to start from when it fails."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what}\n{text}")


# ------------------------------------------------------------------------------------ parameters, by hand
# A convolution k x k has k*k*in*out weights and out biases.

def spade(channels, inputs):
    """3x3 to 128 hidden channels, from there one 3x3 each for gamma and beta."""
    return (3*3*inputs*128 + 128) + 2 * (3*3*128*channels + channels)


def spade_block(i, o, inputs):
    """SPADE, 3x3, SPADE, 3x3; where the width changes a SPADE and a 1x1 without bias, too."""
    middle = min(i, o)
    main = spade(i, inputs) + 3*3*i*middle + middle + spade(middle, inputs) + 3*3*middle*o + o
    return main + (spade(i, inputs) + i*o if i != o else 0)


@pytest.mark.parametrize("dataset, classes, total, millions", [
    ("cityscapes", 35, 71_107_523, 71.11), ("ade20k", 151, 74_314_691, 74.31), ("coco_stuff", 183, 75_199_427, 75.20)])
def test_parameters_of_the_generator_at_full_size(dataset, classes, total, millions):
    """71.1 M at 35 classes are DP-GAN's Table 5; the other two were measured on OASIS's networks."""
    inputs = 64 + classes
    pairs = ((1024, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 128), (128, 64))
    by_hand = {"first": 3*3*inputs*1024 + 1024, "blocks": sum(spade_block(i, o, inputs) for i, o in pairs),
               "to_image": 3*3*64*3 + 3}
    with torch.device("meta"):  # shapes without numbers: nothing is drawn
        G = Generator(classes)
    assert parameters_by_part(G) == by_hand, f"{dataset}: a part differs from the layer table (right: by hand)"
    assert sum(by_hand.values()) == total and round(total / 1e6, 2) == millions, f"{dataset}: {by_hand}"


@pytest.mark.parametrize("classes, total, millions", [
    (35, 22_251_364, 22.25), (151, 22_258_904, 22.26), (183, 22_260_984, 22.26)])
def test_parameters_of_the_discriminator_at_full_size(classes, total, millions):
    """DP-GAN's Table 7: (input, output) of every block; two 3x3, and a 1x1 where the width changes."""
    encoder = ((3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512))
    decoder = ((512, 512), (1024, 256), (512, 256), (512, 128), (256, 128), (256, 64))

    def blocks(pairs):
        return sum(3*3*i*o + o + 3*3*o*o + o + (i*o + o if i != o else 0) for i, o in pairs)

    by_hand = {"encoder": blocks(encoder), "decoder": blocks(decoder), "to_logits": 64*(classes + 1) + classes + 1}
    with torch.device("meta"):
        D = Discriminator(classes)
    assert parameters_by_part(D) == by_hand, "a part differs from Table 7 (right: by hand)"
    assert sum(by_hand.values()) == total and round(total / 1e6, 2) == millions, f"{sum(by_hand.values()):,}"


# ------------------------------------------------------------------------------------------- initialisation

def test_convolutions_start_from_xavier_with_gain_0_02():
    """Standard deviation 0.02 sqrt(2 / (fan_in + fan_out)), biases 0; gamma and beta have fan-outs of their own."""
    torch.manual_seed(0)
    block = SPADEBlock(96, 64, 40, "zeros", hidden=48)
    initialise(block)
    for name, conv in ((n, m) for n, m in block.named_modules() if isinstance(m, nn.Conv2d)):
        spectral = hasattr(conv, "parametrizations")
        weight = conv.parametrizations.weight.original if spectral else conv.weight
        parts = weight.detach().chunk(2 if "gamma_beta" in name else 1)
        for part in parts:
            o, i, h, w = part.shape
            expected = 0.02 * math.sqrt(2 / (i*h*w + o*h*w))
            assert abs(part.std() / expected - 1) < 0.05, f"{name}: {part.std():.2e}, expected {expected:.2e}"
            assert abs(part.mean()) < 0.05 * expected, f"{name} is not centred"
        assert conv.bias is None or not conv.bias.any(), f"{name}: the bias must start at 0"


def test_spectral_norm_knows_the_new_weights():
    """The largest singular value of a weight under spectral norm is 1 from the start, not only after training."""
    torch.manual_seed(0)
    nets = [Generator(CLASSES, widths=(48, 48, 32)), Discriminator(CLASSES, (32, 48), (48, 32))]
    checked = 0
    for net in nets:
        for name, conv in net.eval().named_modules():
            if isinstance(conv, nn.Conv2d) and hasattr(conv, "parametrizations"):
                largest = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2).item()
                assert 0.99 < largest < 1.1, f"{type(net).__module__} {name}: {largest:.3f}, expected 1"
                checked += 1
    assert checked == 5 + 6 + 5, f"{checked} convolutions under spectral norm were found"


# ------------------------------------------------------------------------------------------------ generator

def loops_input(label_map, z, offsets):
    """z at every pixel, then the one-hot labels, then the offsets, one number at a time."""
    B, H, W = label_map.shape
    d_z = z.shape[1]
    x = torch.zeros(B, d_z + CLASSES + (0 if offsets is None else 2), H, W)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                for k in range(d_z):
                    x[b, k, i, j] = z[b, k]
                x[b, d_z + label_map[b, i, j], i, j] = 1
                if offsets is not None:
                    for k in range(2):
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
    """The first convolution at 1/16, block i at 1/2^(4-i): every so many-th pixel of z and one-hot labels. Between
    the blocks the picture grows by repeating pixels."""
    G, first, given, made = tiny_generator(), [], [], []
    G.first.register_forward_pre_hook(lambda _, args: first.append(args[0]))
    for block in G.blocks:
        block.register_forward_hook(lambda _, args, output: given.append(args) or made.append(output))
    label_map = label_maps(2, 32, 48)
    G(label_map, noise())
    x = loops_input(label_map, noise(), None)
    assert_is(first[0], x[:, :, ::16, ::16], "the first convolution must see noise and labels at 1/16")
    for i, (y, condition) in enumerate(given):
        stride = 2 ** (4 - i)
        assert_is(condition, x[:, :, ::stride, ::stride], f"block {i} must be conditioned at 1/{stride}")
        if i > 0:
            assert_is(y, made[i - 1].repeat_interleave(2, 2).repeat_interleave(2, 3), f"the input of block {i}")


def test_the_picture_is_tanh_of_a_convolution_of_the_rectified_last_block():
    G, seen = tiny_generator(), []
    G.blocks[-1].register_forward_hook(lambda _, args, output: seen.append(output))
    image, features = G(label_maps(), noise(), return_features=True)
    assert_is(features, torch.where(seen[0] > 0, seen[0], 0.2 * seen[0]), "G^f is not LeakyReLU(0.2) of the last block")
    assert_is(image, torch.tanh(F.conv2d(features, G.to_image.weight, G.to_image.bias, padding=1)), "tanh(conv(G^f))")
    assert image.shape == (2, 3, 32, 48) and image.abs().max() <= 1 and image.dtype == torch.float32


def test_every_spade_has_its_hidden_convolution():
    """Five blocks, two SPADEs each and a third where the width changes: 8, 8, 8, 6, 6, 4 changes twice."""
    hidden = [m for name, m in tiny_generator().named_modules() if name.endswith("shared.0")]
    assert len(hidden) == 12 and all(m.out_channels == 7 and m.in_channels == 11 for m in hidden), hidden


def assert_every_image_follows_its_own_z(G):
    """In eval mode nothing else is random."""
    changed = noise(3)
    changed[1] = noise(4)[1]
    once = G(label_maps(), noise(3))
    assert torch.equal(G(label_maps(), noise(3)), once), "two calls with one z differ"
    difference = (G(label_maps(), changed) - once).abs().amax(dim=(1, 2, 3))
    assert difference[0] == 0 and difference[1] > 1e-2, f"images changed by {difference.tolist()}"


def test_another_z_gives_another_picture_and_the_same_z_the_same():
    assert_every_image_follows_its_own_z(tiny_generator())


def test_gradient_reaches_every_parameter_of_the_generator():
    """But for the bias of each conv_0, which the batch norm behind it takes out again."""
    G = tiny_generator(offset_channels=2).train()
    image = G(label_maps(), noise(), pictures(seed=1)[:, :2])
    (image * pictures(seed=2)).sum().backward()
    unreached = [n for n, p in G.named_parameters() if not n.endswith("conv_0.bias")
                 and (p.grad is None or not p.grad.any())]
    assert not unreached, f"no gradient reaches {unreached}"


@pytest.mark.parametrize("height, width", [(32, 40), (24, 32)])
def test_the_generator_refuses_sizes_that_cannot_be_halved(height, width):
    with pytest.raises(ValueError, match=f"{height}x{width}.*divisible by 16"):
        tiny_generator()(label_maps(2, height, width), noise())


def test_the_generator_refuses_z_and_offsets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(3, 6\)"):
        tiny_generator()(label_maps(2), noise(count=3))
    with pytest.raises(ValueError, match="2 offset channels.*None"):
        tiny_generator(offset_channels=2)(label_maps(), noise())
    with pytest.raises(ValueError, match="0 offset channels"):
        tiny_generator()(label_maps(), noise(), torch.zeros(2, 2, 32, 48))


# -------------------------------------------------------------------------------------------- discriminator

def reference_unet(D, image):
    """Table 7 in OASIS's own order: down = convolutions, then 2x2 means; up = activation, then twice the size, then
    convolutions; the first block has no activation and pools before its 1x1. -> down, up, logits"""
    def rectified(x):
        return torch.where(x > 0, x, 0.2 * x)

    def conv(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)

    def twice(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    def half(x):
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4

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


@pytest.mark.parametrize("levels", LEVELS)
def test_the_unet_is_table_7(levels):
    """Every block, every skip and the logits, at 4 and 5 levels and on a picture that is not square."""
    D, image = tiny_discriminator(levels).eval(), pictures(2, 64, 32)
    for conv in (m for m in D.modules() if isinstance(m, nn.Conv2d)):
        nn.init.normal_(conv.bias)
    down, up, logits = reference_unet(D, image)
    found_down, found_up = D.encode_decode(image)
    for name, found, expected in (("down", found_down, down), ("up", found_up, up)):
        assert len(found) == levels
        for i, (f, e) in enumerate(zip(found, expected), 1):
            assert_is(f.detach(), e.detach(), f"{name}_{i}")
    assert_is(D(image).detach(), logits.detach(), "the logits are not a 1x1 convolution of the last block")


def test_the_full_size_unet_has_the_sizes_of_table_7():
    with torch.device("meta"):
        D, image = Discriminator(35), torch.empty(1, 3, 256, 256)
    down, up = D.encode_decode(image)
    assert [tuple(f.shape[1:]) for f in down] == [(128, 128, 128), (128, 64, 64), (256, 32, 32), (256, 16, 16),
                                                  (512, 8, 8), (512, 4, 4)]
    assert [tuple(f.shape[1:]) for f in up] == [(512, 8, 8), (256, 16, 16), (256, 32, 32), (128, 64, 64),
                                                (128, 128, 128), (64, 256, 256)]
    assert D(image).shape == (1, 36, 256, 256)


def test_gradient_reaches_every_parameter_of_the_discriminator_and_the_picture():
    D, image = tiny_discriminator(), pictures().requires_grad_()
    D(image).square().sum().backward()
    unreached = [n for n, p in D.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached and image.grad.any(), f"no gradient reaches {unreached or 'the picture'}"


def test_the_discriminator_repeats_itself_in_eval_mode():
    D = tiny_discriminator().eval()
    assert torch.equal(D(pictures()), D(pictures()))


def test_the_discriminator_is_called_like_every_other():
    """backbone None, features None, and with return_all two empty lists."""
    D = tiny_discriminator().eval()
    assert D.backbone is None
    logits, scores, matched = D(pictures(), None, return_all=True)
    assert torch.equal(logits, D(pictures(), None)) and scores == [] and matched == []
    with pytest.raises(ValueError, match="features must be None"):
        D(pictures(), [])


def test_the_discriminator_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="32x40.*divisible by 16"):
        tiny_discriminator()(pictures(1, 32, 40))
    with pytest.raises(ValueError, match="2 encoder widths and 3 decoder widths"):
        Discriminator(CLASSES, (4, 4), (4, 4, 4))


# ------------------------------------------------------------------------------------------------- LabelMix

def test_the_mask_has_one_coin_for_each_image_and_class():
    """M[b, y, x] = flips[b, label of that pixel], by loops."""
    random = torch.Generator().manual_seed(0)
    label_map = torch.randint(CLASSES, (3, 4, 6), generator=random)
    flips = torch.rand(3, CLASSES, generator=random) < 0.5
    M = label_mix_mask(label_map, flips)
    assert M.shape == (3, 1, 4, 6) and M.dtype == torch.bool
    for b in range(3):
        for y in range(4):
            for x in range(6):
                assert M[b, 0, y, x] == flips[b, label_map[b, y, x]], f"image {b}, pixel {y}, {x}"


def test_the_coins_are_independent_between_images_and_classes():
    """1000 draws for two images with one label map of two classes. OASIS's code shared the coins between images, and
    flipped class 0 again as class 1: P(class 0 real) was 1/4, and the two classes agreed in 3/4 of the cases."""
    random = torch.Generator().manual_seed(0)
    label_map = torch.tensor([[[0, 1]], [[0, 1]]])                                      # (2, 1, 2)
    masks = torch.stack([label_mix_mask(label_map, torch.rand(2, 2, generator=random) < 0.5)
                         for _ in range(1000)]).flatten(1).float()                      # (1000, 4): image, class
    assert ((masks.mean(dim=0) - 0.5).abs() < 0.06).all(), f"real in {masks.mean(dim=0).tolist()} of the cases"
    for i in range(4):
        for j in range(i):
            agree = (masks[:, i] == masks[:, j]).float().mean().item()
            assert abs(agree - 0.5) < 0.06, f"coins {i} and {j} (image, class) agree in {agree:.2f} of the cases"


def mix_case(seed=0, B=2, K=3, H=2, W=3):
    random = torch.Generator().manual_seed(seed)
    logits = [torch.randn(B, K, H, W, generator=random) for _ in range(3)]
    return *logits, torch.rand(B, 1, H, W, generator=random) < 0.5


def test_dpgan_eq8_label_mix_loss_is_the_papers_norm():
    """(DP-GAN Eq. 8) by loops: M = 1 takes the real side. The squared norm over its number of terms."""
    mixed, real, fake, M = mix_case()
    total, count = 0.0, 0
    for b in range(2):
        for k in range(3):
            for y in range(2):
                for x in range(3):
                    m = 1.0 if M[b, 0, y, x] else 0.0
                    label_mixed = m * real[b, k, y, x].item() + (1 - m) * fake[b, k, y, x].item()
                    total, count = total + (mixed[b, k, y, x].item() - label_mixed) ** 2, count + 1
    assert 0 < M.sum() < M.numel(), "the case must have pixels of both kinds"
    assert_is(label_mix_loss(mixed, real, fake, M), total / count, "L_LM is not the mean square of Eq. 8")


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
