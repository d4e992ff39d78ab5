"""The generator against Sec. 3.2 and Fig. 3: Eq. 1, Eq. 2, its two pyramids, what noise may touch, and every parameter.

    python -m pytest tests/test_generator.py          (from the repository root; a few seconds on a CPU)

Oracles: the equations by plain Python loops on tiny tensors; parameter counts added up by hand from DP-GAN's
Tables 6 and 8 and the paper's additions; properties that the paper states in words. Nothing is downloaded.

Most tests use a generator with all six scales of the paper and 8 channels where the paper has 1024. Its gates eta
start at 0, as they must, so tests about noise open them first. The other tests take helpers from here.
"""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from generator import (CrossAttention, Generator, LabelBlock, NoiseMapping, SelfAttention, SPADEBlock, attention,
                       fused_attention, parameters_by_part)

CLASSES = 5
TINY = dict(widths=(8, 8, 8, 8, 6, 6, 4), stem_channels=4, label_channels=4, z_dim=6, noise_tokens=3,
            noise_width=5, noise_hidden=8)


def tiny_generator(offset_channels=0, cross=0.0, own=0.0, **changes):
    """A small generator in eval mode; cross and own are the gates of its cross- and self-attention."""
    torch.manual_seed(0)
    G = Generator(CLASSES, offset_channels, **{**TINY, **changes}).eval()
    for name, p in G.named_parameters():
        if name.endswith("eta"):
            p.data.fill_(cross if "cross_attention" in name else own)
    return G


def label_maps(count=2, height=64, width=64):
    """Blocks of 4x4 pixels with one random class each."""
    blocks = torch.randint(CLASSES, (count, height // 4, width // 4), generator=torch.Generator().manual_seed(1))
    return blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def noise(seed=0, count=2):
    return torch.randn(count, TINY["z_dim"], generator=torch.Generator().manual_seed(seed))


def assert_is(actual, expected, what, **tolerance):
    """Like assert_close, with a sentence to start from when it fails."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what}\n{text}")


def without_gradient(net):
    """Names of the parameters that no gradient reached."""
    return [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]


def largest_singular_values(net):
    """{name of every convolution: the largest singular value of its weight; None without spectral norm}"""
    return {name: torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2).item()
            if nn.utils.parametrize.is_parametrized(conv) else None
            for name, conv in net.named_modules() if isinstance(conv, nn.Conv2d)}


# ----------------------------------------------------------------------------------------- Eq. 1 and Eq. 2

def loops_eq1(Q, K, V):
    """A = SoftMax(Q K^T / sqrt(d_q)) V (Eq. 1) for lists of rows: one query at a time."""
    A = []
    for q in Q:
        scores = [sum(a * b for a, b in zip(q, k)) / math.sqrt(len(q)) for k in K]
        e = [math.exp(s) for s in scores]
        shares = [value / sum(e) for value in e]
        A.append([sum(share * v[d] for share, v in zip(shares, V)) for d in range(len(V[0]))])
    return A


def loops_eq2(h, eta, Q, K, V):
    """h + eta A (Eq. 2). Q, K, V: for each image a list of rows, those of Q in the order of pixels_of."""
    expected = torch.zeros_like(h)
    for b in range(len(h)):
        A = loops_eq1(Q[b], K[b], V[b])
        for c, y, x in np.ndindex(h.shape[1:]):
            expected[b, c, y, x] = h[b, c, y, x] + eta * A[y * h.shape[3] + x][c]
    return expected


def pixels_of(h):
    """(B, C, H, W) -> for each image the list of its pixels, row by row."""
    return [[image[:, y, x].tolist() for y, x in np.ndindex(h.shape[2:])] for image in h]


def matrix(x, layer):
    """Rows of x through a bias-free linear layer, by loops: y_o = sum_i x_i W_oi."""
    return [[sum(a * b for a, b in zip(row, weights)) for weights in layer.weight.tolist()] for row in x]


def test_eq1_attention_is_the_papers_formula():
    """(Eq. 1) by loops, the softmax by hand, for 2 images, 6 pixels, 3 tokens and d_q = 4."""
    random = torch.Generator().manual_seed(0)
    Q, K, V = (torch.randn(2, n, 4, generator=random) for n in (6, 3, 3))
    expected = [loops_eq1(Q[b].tolist(), K[b].tolist(), V[b].tolist()) for b in range(2)]
    assert_is(attention(Q, K, V), expected, "attention() is not SoftMax(Q K^T / sqrt(d_q)) V")


def test_eq1_by_hand():
    """(Eq. 1) d_q = 4, scores 2 ln 3 / sqrt(4) = ln 3 and 0: the shares are 3/4 and 1/4, A = 3/4 * 8 + 1/4 * 4."""
    Q = torch.tensor([[[2 * math.log(3), 0, 0, 0]]])
    K = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    V = torch.tensor([[[8.0, 0, 0, 0], [4.0, 0, 0, 0]]])
    assert_is(attention(Q, K, V), [[[7.0, 0, 0, 0]]], "3/4 of 8 and 1/4 of 4 make 7; is the 1/sqrt(d_q) there?")


@pytest.mark.parametrize("T, n, d_q", [(1, 1, 1), (6, 3, 4), (64, 16, 8), (33, 33, 64)])
def test_eq1_the_fused_form_agrees_with_the_formula(T, n, d_q):
    """(Eq. 1) Values and gradients, in float32: for pixels and noise tokens, and for pixels among themselves."""
    random = torch.Generator().manual_seed(0)
    Q, K, V = (torch.randn(2, rows, d_q, generator=random).requires_grad_() for rows in (T, n, n))
    weights = torch.randn(2, T, d_q, generator=random)
    written, fused = ((A, *torch.autograd.grad((A * weights).sum(), (Q, K, V)))
                      for A in (attention(Q, K, V), fused_attention(Q, K, V)))
    for name, expected, found in zip(("A", "Q's gradient", "K's gradient", "V's gradient"), written, fused):
        assert found.dtype == torch.float32
        assert_is(found, expected, f"fused_attention and attention differ in {name}", rtol=1e-5, atol=1e-5)


def test_eq2_cross_attention_adds_eta_times_attention():
    """(Eq. 2) a(h, w) = h + eta A(h, w) with eta = 0.7: queries from the pixels, keys and values from w."""
    torch.manual_seed(0)
    block, h, w = CrossAttention(channels=4, noise_width=5), torch.randn(2, 4, 2, 3), torch.randn(2, 3, 5)
    nn.init.constant_(block.eta, 0.7)
    Q = [matrix(pixels, block.to_query) for pixels in pixels_of(h)]
    K, V = ([matrix(tokens, layer) for tokens in w.tolist()] for layer in (block.to_key, block.to_value))
    assert_is(block(h, w).detach(), loops_eq2(h, 0.7, Q, K, V), "cross-attention is not h + eta * A(h, w)")


def test_eq2_a_closed_gate_leaves_h_exactly_as_it_is():
    """(Eq. 2) "a trainable gating parameter initialized at 0": a fresh block returns h, bit for bit."""
    h = torch.randn(2, 4, 2, 3)
    assert torch.equal(CrossAttention(4, 5)(h, torch.randn(2, 3, 5)), h), "eta starts at 0, the output must be h"


def test_gates_stand_at_64x64_and_lower_and_start_at_0():
    """(Eq. 2) "initialized at 0", the self-attention's too; Sec. 3.2: "at spatial resolutions 64x64 and lower", of
    256x256, so that strides 4, 8, 16 and 32 attend."""
    gates = {name: p.item() for name, p in Generator(CLASSES, **TINY).named_parameters() if name.endswith("eta")}
    assert gates == {f"label_pyramid.blocks.{i}.{kind}_attention.eta": 0.0 for i in (2, 3, 4, 5)
                     for kind in ("cross", "self")}


def test_self_attention_is_residual_and_gated():
    """Sec. 3.2, "a residual self-attention block": h + eta' SA(h), every pixel asking every pixel of its image."""
    torch.manual_seed(0)
    block, h = SelfAttention(channels=4), torch.randn(2, 4, 2, 3)
    assert torch.equal(block(h), h), "its gate starts at 0, a fresh block must return h"
    nn.init.constant_(block.eta, 0.7)
    projected = [matrix(pixels, block.to_query_key_value) for pixels in pixels_of(h)]  # Q, K and V side by side
    Q, K, V = ([[row[i:i + 4] for row in image] for image in projected] for i in (0, 4, 8))
    assert_is(block(h).detach(), loops_eq2(h, 0.7, Q, K, V), "self-attention is not h + eta' SA(h)")


def test_the_noise_mapping_is_a_three_layer_mlp():
    """Sec. 3.2: "w = MLP(z), three-layer", n_k tokens of d_w numbers. By hand: linear, LeakyReLU, twice, linear."""
    torch.manual_seed(0)
    mapping, z = NoiseMapping(z_dim=6, hidden=8, tokens=3, width=5), noise()
    layers = [m for m in mapping.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 3, f"the MLP has {len(layers)} linear layers, the paper says three"
    w = z
    for i, layer in enumerate(layers):
        w = w @ layer.weight.T + layer.bias
        w = torch.where(w > 0, w, 0.2 * w) if i < 2 else w
    assert_is(mapping(z).detach(), w.detach().view(2, 3, 5), "w is not the MLP of z, as (B, n_k, d_w)")


def test_a_label_block_is_convolution_norm_gelu_attention_pointwise():
    """Sec. 3.2: "a single convolution layer with downsampling followed by batch norm, GELU activation,
    attention modules, and a pointwise convolution layer". GELU by hand: x times the normal share below x."""
    torch.manual_seed(0)
    block = LabelBlock(3, 4, stride=2, padding="zeros", noise_width=5, self_attention=True).eval()
    nn.init.constant_(block.cross_attention.eta, 0.7), nn.init.constant_(block.self_attention.eta, 0.4)
    x, w = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 5)
    h = F.conv2d(x, block.conv.weight, block.conv.bias, stride=2, padding=1)
    h = h / math.sqrt(1 + 1e-5)  # a fresh batch norm: mean 0, variance 1
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    h = block.self_attention(block.cross_attention(h, w))
    expected = torch.einsum("oc,bchw->bohw", block.out.weight[:, :, 0, 0], h) + block.out.bias.view(1, 4, 1, 1)
    assert_is(block(x, w).detach(), expected.detach(), "the label block does something else, or in another order")


# ------------------------------------------------------------------------------------ parameters, by hand
# The pyramids of the paper, 8x8 to 256x256. A batch norm has a scale and a shift.

def conv(inputs, outputs, k=3):
    return k*k*inputs*outputs + outputs


def spade(channels, condition=128):
    """One 3x3 convolution each for gamma and beta, from the 64 + 64 channels of concat(h_i, h_L)."""
    return 2 * conv(condition, channels)


def image_pyramid(spade):
    """DP-GAN's Table 8: in each block SPADE, 3x3, SPADE, 3x3, the width between being the smaller one; where the width
    changes a shortcut of SPADE and a 1x1 without bias. spade: channels -> its parameters."""
    pairs = ((1024, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 128), (128, 64))
    return sum(spade(i) + conv(i, min(i, o)) + spade(min(i, o)) + conv(min(i, o), o)
               + (spade(i) + i*o if i != o else 0) for i, o in pairs)


def label_convolutions(inputs):
    """DP-GAN's Table 6: 3x3 convolution and batch norm, inputs -> 32 -> 64, then 64 -> 64 five times."""
    return conv(inputs, 32) + 2*32 + conv(32, 64) + 2*64 + 5 * (conv(64, 64) + 2*64)


NOISE_MLP = conv(64, 256, 1) + conv(256, 256, 1) + conv(256, 16*64, 1)  # z of 64 -> 256 -> 256 -> 16 tokens of 64
ATTENTION = (64*64 + 64*64 + 64*64 + 1  # cross: query from h, key and value from w, eta
             + 64*(3*64) + 1)           # self: query, key and value from h, its gate


def full_size(build, monkeypatch, *skipped):
    """A network of shapes without numbers. skipped: functions of a network that take seconds and add no parameter."""
    for name in skipped:
        monkeypatch.setattr(name, lambda net: net)
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("dataset, classes, offset_channels, total", [
    ("ade20k", 151, 0, 70_476_299), ("cityscapes", 35, 2, 69_392_843), ("coco_stuff", 183, 2, 70_799_435)])
def test_parameters_of_every_part_at_full_size(dataset, classes, offset_channels, total, monkeypatch):
    """Six scales, each with its pointwise convolution; the four at stride 4 and more attend. The same counts without
    the paper's additions give DP-GAN's published 69.5 M in test_dpgan.py."""
    inputs = classes + offset_channels
    by_hand = {"noise_mapping": NOISE_MLP,
               "label_pyramid": label_convolutions(inputs) + 6 * conv(64, 64, 1) + 4 * ATTENTION,
               "first": conv(inputs, 1024), "blocks": image_pyramid(spade), "to_image": conv(64, 3)}
    G = full_size(lambda: Generator(classes, offset_channels), monkeypatch, "generator.spectral_norm")
    assert parameters_by_part(G) == by_hand, f"{dataset}: a part differs from the layer tables (right: by hand)"
    assert sum(p.numel() for p in G.parameters()) == total, f"{dataset}: {total:,} parameters were expected"


# ------------------------------------------------------------------------------- label map in, picture out

def assert_refuses_what_does_not_fit(build, divisor):
    """Sides that cannot be halved often enough, z of another batch, offsets too many or missing; with the numbers."""
    for height, width in ((64, 3 * divisor // 2), (5 * divisor // 2, 64)):
        with pytest.raises(ValueError, match=f"{height}x{width}.*divisible by {divisor}"):
            build()(label_maps(2, height, width), noise())
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(3, 6\)"):
        build()(label_maps(2), noise(count=3))
    with pytest.raises(ValueError, match="0 offset channels"):
        build()(label_maps(), noise(), torch.zeros(2, 2, 64, 64))
    with pytest.raises(ValueError, match="2 offset channels.*None"):
        build(offset_channels=2)(label_maps(), noise())


def test_the_generator_refuses_what_does_not_fit():
    """Six scales halve the picture five times: by 32."""
    assert_refuses_what_does_not_fit(tiny_generator, 32)


def test_the_image_is_within_minus_1_and_1():
    """However large the features: the last step is a tanh."""
    G = tiny_generator()
    G.to_image.weight.data *= 1000
    largest = G(label_maps(), noise()).abs().max()
    assert 0.99 < largest <= 1, f"large features should come close to -1 or 1, and not beyond: {largest}"


def test_the_picture_grows_by_nearest_neighbour_or_bilinearly():
    """What the second block reads, by loops: the pixel of the small map below, or a mix of the four around it."""
    seen = []
    for growth in ("nearest", "bilinear"):
        G = tiny_generator(growth=growth)
        G.blocks[1].register_forward_hook(lambda block, inputs, y: seen.append(inputs[0]))
        y = []
        G.blocks[0].register_forward_hook(lambda block, inputs, output: y.append(output))
        G(label_maps(), noise())
        expected = torch.zeros_like(seen[-1])
        B, C, H, W = expected.shape
        for row in range(H):
            for column in range(W):
                if growth == "nearest":
                    expected[:, :, row, column] = y[0][:, :, row // 2, column // 2]
                    continue
                for r, p in neighbours(row, H // 2):
                    for c, q in neighbours(column, W // 2):
                        expected[:, :, row, column] += p * q * y[0][:, :, r, c]
        torch.testing.assert_close(seen[-1], expected, atol=1e-5, rtol=1e-5)


def neighbours(i, n):
    """[(pixel of the small map, its weight), ...] for pixel i of one twice as large: pixel centres coincide."""
    at = min(max((i + 0.5) / 2 - 0.5, 0), n - 1)
    low = min(int(at), n - 2)
    return (low, 1 - (at - low)), (low + 1, at - low)


@pytest.mark.parametrize("padding, frames", [("zeros", True), ("reflect", False)])
def test_reflected_borders_draw_no_frame(padding, frames):
    """One class everywhere: with reflected borders every pixel sees the same, so that the picture is uniform;
    zeros around it make a border that can be seen."""
    G = tiny_generator(cross=0.7, own=0.7, padding=padding)
    image = G(torch.ones(1, 64, 64, dtype=torch.long), noise(0, 1))
    spread = (image - image[:, :, 32:33, 32:33]).abs().max().item()
    assert (spread > 1e-3) == frames, f"{padding}: pixels differ from the middle one by up to {spread:.1e}"


def blocks_of(G, *args):
    """-> (image, features), what G's first convolution saw, and (y, condition, output) of every block, lowest first."""
    first, blocks = [], []
    hooks = [G.first.register_forward_pre_hook(lambda _, args: first.append(args[0]))] + [
        block.register_forward_hook(lambda _, args, output: blocks.append((*args, output))) for block in G.blocks]
    with torch.no_grad():
        result = G(*args, return_features=True)
    for hook in hooks:
        hook.remove()
    return result, first[0], blocks


@torch.no_grad()
def assert_grows_into_a_picture(G, lowest, label_map, *args):
    """The first convolution sees `lowest`, every block the one before it with each pixel as a square of 2x2. G^f of
    Eq. 6, "the feature output of the generator before the final convolution", is LeakyReLU(0.2) of the last block."""
    (image, features), first, blocks = blocks_of(G, label_map, *args)
    assert_is(first, lowest, "the first convolution must see the input at the lowest scale")
    y = G.first(first)
    for i, (seen, _, output) in enumerate(blocks):
        assert_is(seen, y, f"block {i} does not see what is below it, doubled")
        y = output.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert_is(features, torch.where(output > 0, output, 0.2 * output), "G^f is not LeakyReLU(0.2) of the last block")
    by_hand = torch.tanh(F.conv2d(features, G.to_image.weight, G.to_image.bias, padding=1))
    assert_is(image, by_hand, "the image is not tanh(conv(G^f))")
    assert image.shape == (len(label_map), 3, *label_map.shape[1:]) and image.dtype == torch.float32


@pytest.mark.parametrize("height, width", [(64, 64), (64, 128), (32, 32)])
def test_the_image_pyramid_grows_from_the_low_resolution_label_map(height, width):
    """Sec. 3.2, Fig. 3: "takes a low-resolution label map as input": every 32nd pixel, one-hot, no noise."""
    label_map, lowest = label_maps(2, height, width), torch.zeros(2, CLASSES, height // 32, width // 32)
    for b, y, x in np.ndindex(2, height // 32, width // 32):
        lowest[b, label_map[b, 32 * y, 32 * x], y, x] = 1
    assert_grows_into_a_picture(tiny_generator(), lowest, label_map, noise())


def test_every_spade_block_is_conditioned_on_its_map_and_the_lowest_one():
    """Sec. 3.2: h_i, "concatenated with a resized version of the ultimate map h_L"."""
    G, maps = tiny_generator(cross=0.7, own=0.7), []
    G.label_pyramid.register_forward_hook(lambda _, args, output: maps.extend(output))
    _, _, blocks = blocks_of(G, label_maps(), noise())
    assert len(blocks) == len(maps) == 6
    for (_, condition, _), h_i in zip(blocks, reversed(maps)):
        side = h_i.shape[2]
        resized = F.interpolate(maps[-1], size=(side, side), mode="bilinear", align_corners=False)
        assert_is(condition, torch.cat([h_i, resized], dim=1), f"{side}x{side}: not [h_i, h_L resized]")


@pytest.mark.parametrize("in_channels, out_channels", [(4, 4), (4, 3)])
def test_a_spade_block_is_residual(in_channels, out_channels):
    """DP-GAN's block: SPADE (DP-GAN Eq. 1, in test_dpgan.py), LeakyReLU(0.2), 3x3, twice, beside a shortcut without an
    activation, which has a SPADE and a 1x1 convolution of its own only where the width changes."""
    torch.manual_seed(0)
    block = SPADEBlock(in_channels, out_channels, condition_channels=2, padding="zeros").eval()
    x, condition = torch.randn(2, in_channels, 4, 4), torch.randn(2, 2, 4, 4)
    y = block.spade_0(x, condition)
    y = block.spade_1(block.conv_0(torch.where(y > 0, y, 0.2 * y)), condition)
    y = block.conv_1(torch.where(y > 0, y, 0.2 * y))
    shortcut = x if in_channels == out_channels else block.conv_s(block.spade_s(x, condition))
    assert_is(block(x, condition).detach(), (shortcut + y).detach(), "shortcut + residual path was expected")


def test_spectral_norm_on_the_block_convolutions_only():
    """DP-GAN: conv_0, conv_1 and the shortcut have spectral norm 1; SPADE's own, the first and the last do not."""
    for name, sigma in largest_singular_values(tiny_generator()).items():
        wanted = name.startswith("blocks.") and name.split(".")[-1] in ("conv_0", "conv_1", "conv_s")
        assert (sigma is not None) == wanted, f"{name} is {'not ' if sigma is None else ''}spectrally normalised"
        assert sigma is None or abs(sigma - 1) < 0.1, f"the largest singular value of {name} is {sigma:.3f}, expected 1"


# --------------------------------------------------------------------------------- what the noise may touch

def assert_every_image_follows_its_own_z(G, least=1e-2):
    """z is an argument: nothing in a generator draws numbers."""
    torch.manual_seed(1)
    once, changed = G(label_maps(), noise(3)), noise(3)
    torch.manual_seed(2)
    assert torch.equal(G(label_maps(), noise(3)), once), "two calls with one z differ: something else is random"
    changed[1] = noise(4)[1]
    difference = (G(label_maps(), changed) - once).abs().amax(dim=(1, 2, 3))
    assert difference[0] == 0, "image 0 kept its z and changed all the same"
    assert difference[1] > least, f"image 1 got another z and changed by no more than {difference[1].item():.1e}"


def test_every_image_follows_its_own_z():
    assert_every_image_follows_its_own_z(tiny_generator(cross=0.7, own=0.7), least=1e-3)


def test_closed_gates_leave_z_without_any_effect():
    """(Eq. 2) "noise enters only through cross-attention": its gates at 0, the open self-attention carries none."""
    G = tiny_generator(cross=0.0, own=0.7)
    assert torch.equal(G(label_maps(), noise(3)), G(label_maps(), noise(4))), "z has another way in than Eq. 2"


@pytest.mark.parametrize("attention_stride", [2, 4, 8])
def test_noise_enters_at_attention_stride_and_below(attention_stride):
    """The modulation maps of two z are the same down to that stride, and different from there on."""
    G, maps = tiny_generator(cross=0.7, attention_stride=attention_stride), []
    G.label_pyramid.register_forward_hook(lambda _, args, output: maps.append(output))
    for seed in (3, 4):
        G(label_maps(), noise(seed))
    differ = {2 ** i: not torch.equal(h, other) for i, (h, other) in enumerate(zip(*maps))}
    assert differ == {stride: stride >= attention_stride for stride in (1, 2, 4, 8, 16, 32)}, "strides that depend on z"


def test_offsets_change_the_picture():
    """Sec. 4.1: the offset maps are concatenated to the label map."""
    G, offsets = tiny_generator(offset_channels=2), torch.zeros(2, 2, 64, 64)
    before = G(label_maps(), noise(), offsets)
    for channel, name in enumerate(("dy", "dx")):
        changed = offsets.clone()
        changed[:, channel, 16:48, 16:48] = 0.3
        assert (G(label_maps(), noise(), changed) - before).abs().max() > 1e-4, f"{name} has no effect"


def test_gradient_reaches_every_parameter():
    """Open gates, eval mode: with batch statistics, a bias in front of a batch norm has no effect, rightly."""
    G, random = tiny_generator(offset_channels=2, cross=0.7, own=0.7), torch.Generator().manual_seed(0)
    offsets, weights = (torch.rand(2, n, 64, 64, generator=random) for n in (2, 3))
    (G(label_maps(), noise(), offsets) * weights).sum().backward()
    assert not without_gradient(G)


def test_the_gates_learn_from_the_first_step():
    """(Eq. 2) At eta = 0 the noise has no effect, but eta itself has a gradient: training can open the gate."""
    G = tiny_generator()
    (G(label_maps(), noise()) ** 2).sum().backward()
    assert not [name for name in without_gradient(G) if name.endswith("eta")], "a gate starts at 0 and could never open"


def test_in_eval_mode_a_batch_is_its_images_one_by_one():
    """After some training, so that the running statistics are not the ones of the beginning."""
    G = tiny_generator(cross=0.7, own=0.7).train()
    for seed in range(3):
        G(label_maps(4), noise(seed, 4))
    G.eval()
    label_map, z = label_maps(4), noise(9, 4)
    with torch.no_grad():
        together, single = G(label_map, z), [G(label_map[i:i + 1], z[i:i + 1]) for i in range(4)]
    assert_is(together, torch.cat(single), "an image depends on its neighbours in the batch", atol=1e-5, rtol=0)
