"""The generator against Sec. 3.2 and Fig. 3: Eq. 1, Eq. 2, SPADE, what noise may touch, and every parameter.

    python -m pytest tests/test_generator.py          (from the repository root; a few seconds on a CPU)

Oracles: the equations by plain Python loops on tiny tensors; parameter counts added up by hand from DP-GAN's
Tables 6 and 8 and the paper's additions; properties that the paper states in words. No weights, no network.

Most tests use a generator with all six scales of the paper and 8 channels where the paper has 1024. Its
gates eta start at 0, as they must, so tests about noise open them first.
"""
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from generator import (SPADE, CrossAttention, Generator, LabelBlock, NoiseMapping, SelfAttention, SPADEBlock,
                       attention, parameters_by_part)

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
    """Blocks of 16x16 pixels with one random class each."""
    random = torch.Generator().manual_seed(1)
    blocks = torch.randint(CLASSES, (count, height // 16, width // 16), generator=random)
    return blocks.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)


def noise(seed=0, count=2):
    return torch.randn(count, TINY["z_dim"], generator=torch.Generator().manual_seed(seed))


def assert_is(actual, expected, what, **tolerance):
    """Like assert_close, with a sentence to start from when it fails."""
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, **tolerance, msg=lambda text: f"{what}\n{text}")


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
    """(Eq. 1) d_q = 4, scores 2 ln 3 / sqrt(4) = ln 3 and 0: the
    shares are 3/4 and 1/4, A = 3/4 * 8 + 1/4 * 4."""
    Q = torch.tensor([[[2 * math.log(3), 0, 0, 0]]])
    K = torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]])
    V = torch.tensor([[[8.0, 0, 0, 0], [4.0, 0, 0, 0]]])
    assert_is(attention(Q, K, V), [[[7.0, 0, 0, 0]]],
              "3/4 of 8 and 1/4 of 4 make 7; is the 1/sqrt(d_q) there?")


def test_eq2_cross_attention_adds_eta_times_attention():
    """(Eq. 2) a(h, w) = h + eta A(h, w) with eta = 0.7: queries from the pixels, keys and values from w."""
    torch.manual_seed(0)
    block = CrossAttention(channels=4, noise_width=5)
    nn.init.constant_(block.eta, 0.7)
    h, w = torch.randn(2, 4, 2, 3), torch.randn(2, 3, 5)
    expected = torch.zeros_like(h)
    for b in range(2):
        pixels = [h[b, :, y, x].tolist() for y in range(2) for x in range(3)]  # flattened row by row
        tokens = w[b].tolist()
        A = loops_eq1(matrix(pixels, block.to_query),
                      matrix(tokens, block.to_key), matrix(tokens, block.to_value))
        for y in range(2):
            for x in range(3):
                for c in range(4):
                    expected[b, c, y, x] = h[b, c, y, x] + 0.7 * A[y * 3 + x][c]
    assert_is(block(h, w).detach(), expected, "cross-attention is not h + eta * A(h, w)")


def test_eq2_a_closed_gate_leaves_h_exactly_as_it_is():
    """(Eq. 2) "a trainable gating parameter initialized at 0": a fresh block returns h, bit for bit."""
    h = torch.randn(2, 4, 2, 3)
    assert torch.equal(CrossAttention(4, 5)(h, torch.randn(2, 3, 5)), h), (
        "eta starts at 0, the output must be h")


def test_every_gate_of_a_new_generator_is_0():
    """(Eq. 2) "initialized at 0", and the same for the self-attention, at the four scales that attend."""
    gates = [p.item() for name, p in Generator(CLASSES, **TINY).named_parameters() if name.endswith("eta")]
    assert gates == [0.0] * 8, f"two gates at each of four scales, all 0, were expected: {gates}"


def test_the_noise_mapping_is_a_three_layer_mlp():
    """Sec. 3.2: "w = MLP(z), three-layer", n_k tokens of d_w
    numbers. By hand: linear, LeakyReLU, twice, linear."""
    torch.manual_seed(0)
    mapping, z = NoiseMapping(z_dim=6, hidden=8, tokens=3, width=5), noise()
    layers = [m for m in mapping.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 3, f"the MLP has {len(layers)} linear layers, the paper says three"
    w = z
    for i, layer in enumerate(layers):
        w = w @ layer.weight.T + layer.bias
        w = torch.where(w > 0, w, 0.2 * w) if i < 2 else w
    assert_is(mapping(z).detach(), w.detach().view(2, 3, 5), "w is not the MLP of z, as (B, n_k, d_w)")


def test_self_attention_is_residual_and_gated():
    """Sec. 3.2, "a residual self-attention block": h + eta' SA(h),
    every pixel asking every pixel of its image."""
    torch.manual_seed(0)
    block, h = SelfAttention(channels=4), torch.randn(2, 4, 2, 3)
    assert torch.equal(block(h), h), "its gate starts at 0, a fresh block must return h"
    nn.init.constant_(block.eta, 0.7)
    expected = torch.zeros_like(h)
    for b in range(2):
        pixels = [h[b, :, y, x].tolist() for y in range(2) for x in range(3)]
        projected = matrix(pixels, block.to_query_key_value)  # query, key and value behind one another
        A = loops_eq1(*([row[i:i + 4] for row in projected] for i in (0, 4, 8)))
        for y in range(2):
            for x in range(3):
                for c in range(4):
                    expected[b, c, y, x] = h[b, c, y, x] + 0.7 * A[y * 3 + x][c]
    assert_is(block(h).detach(), expected, "self-attention is not h + eta' SA(h)")


def test_a_label_block_is_convolution_norm_gelu_attention_pointwise():
    """Sec. 3.2: "a single convolution layer with downsampling followed by batch norm, GELU activation,
    attention modules, and a pointwise convolution layer". GELU by hand: x times the normal share below x."""
    torch.manual_seed(0)
    block = LabelBlock(in_channels=3, out_channels=4, stride=2, padding="zeros", noise_width=5,
                       self_attention=True).eval()
    nn.init.constant_(block.cross_attention.eta, 0.7), nn.init.constant_(block.self_attention.eta, 0.4)
    x, w = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 5)
    h = F.conv2d(x, block.conv.weight, block.conv.bias, stride=2, padding=1)
    h = h / math.sqrt(1 + 1e-5)  # a fresh batch norm: mean 0, variance 1
    h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
    h = block.self_attention(block.cross_attention(h, w))
    expected = torch.einsum("oc,bchw->bohw", block.out.weight[:, :, 0, 0], h)
    expected = expected + block.out.bias.view(1, 4, 1, 1)
    assert_is(block(x, w).detach(), expected.detach(),
              "the label block does something else, or in another order")


# ------------------------------------------------------------------------------------ parameters, by hand
# The pyramids of the paper, 8x8 to 256x256. A convolution k x k has k*k*in*out weights and out biases.

def spade(channels):
    """One 3x3 convolution each for gamma and beta, from the 64 + 64 channels of concat(h_i, h_L)."""
    return 2 * (3*3*128*channels + channels)


IMAGE_PYRAMID = (
    # main path: SPADE, 3x3, SPADE, 3x3; the width between is the smaller one
    2 * (spade(1024) + 3*3*1024*1024 + 1024 + spade(1024) + 3*3*1024*1024 + 1024)  # 1024 -> 1024, twice
    + spade(1024) + 3*3*1024*512 + 512 + spade(512) + 3*3*512*512 + 512            # 1024 -> 512
    + spade(512) + 3*3*512*256 + 256 + spade(256) + 3*3*256*256 + 256              # 512 -> 256
    + spade(256) + 3*3*256*128 + 128 + spade(128) + 3*3*128*128 + 128              # 256 -> 128
    + spade(128) + 3*3*128*64 + 64 + spade(64) + 3*3*64*64 + 64                    # 128 -> 64
    # shortcut where the width changes: SPADE and a 1x1 without bias
    + spade(1024) + 1024*512 + spade(512) + 512*256 + spade(256) + 256*128 + spade(128) + 128*64)
TO_IMAGE = 3*3*64*3 + 3
NOISE_MLP = 64*256 + 256 + 256*256 + 256 + 256*(16*64) + 16*64  # z of 64 -> 256 -> 256 -> 16 tokens of 64
ATTENTION = (64*64 + 64*64 + 64*64 + 1  # cross: query from h, key and value from w, eta
             + 64*(3*64) + 1)           # self: query, key and value from h, its gate
POINTWISE = 64*64 + 64


def label_convolutions(inputs):
    """Table 6: 3x3 convolution and batch norm (scale, shift),
    inputs -> 32 -> 64, then 64 -> 64 five times."""
    return (3*3*inputs*32 + 32 + 2*32) + (3*3*32*64 + 64 + 2*64) + 5 * (3*3*64*64 + 64 + 2*64)


def first(inputs):
    """Table 8: the low-resolution label map through one 3x3 convolution."""
    return 3*3*inputs*1024 + 1024


@pytest.mark.parametrize("dataset, classes, offset_channels, total", [
    ("ade20k", 151, 0, 70_476_299), ("cityscapes", 35, 2, 69_392_843), ("coco_stuff", 183, 2, 70_799_435)])
def test_parameters_of_every_part_at_full_size(dataset, classes, offset_channels, total):
    """Six scales, each with its pointwise convolution; the four at
    stride 4 and more (64x64 and lower) attend."""
    inputs = classes + offset_channels
    by_hand = {"noise_mapping": NOISE_MLP,
               "label_pyramid": label_convolutions(inputs) + 6 * POINTWISE + 4 * ATTENTION,
               "first": first(inputs), "blocks": IMAGE_PYRAMID, "to_image": TO_IMAGE}
    with torch.device("meta"):  # shapes without numbers: nothing is drawn
        G = Generator(classes, offset_channels)
    assert parameters_by_part(G) == by_hand, (
        f"{dataset}: a part differs from the layer tables (right: by hand)")
    assert sum(p.numel() for p in G.parameters()) == total, f"{dataset}: {total:,} parameters were expected"


def test_the_same_layers_give_dp_gans_published_69_5_million():
    """DP-GAN, Table 5: 69.5 M at 35 classes. Its noise is 64
    channels beside the classes, it has no attention."""
    dp_gan = label_convolutions(35 + 64) + first(35 + 64) + IMAGE_PYRAMID + TO_IMAGE
    with torch.device("meta"):
        ours = sum(p.numel() for p in Generator(35).parameters())
    ours_reduced = (ours - NOISE_MLP - 4 * ATTENTION - 6 * POINTWISE  # what DP-SIMS adds
                    + 64 * 3*3*32 + 64 * 3*3*1024)                    # 64 more inputs of stem and first
    assert ours_reduced == dp_gan, "the generator differs from DP-GAN's by more than the paper's additions"
    assert abs(ours_reduced / 1e6 - 69.5) < 0.05, f"{ours_reduced:,} parameters; DP-GAN's Table 5 says 69.5 M"


# ------------------------------------------------------------------------------------------ sizes and range

@pytest.mark.parametrize("height, width", [(64, 64), (64, 128), (32, 32)])
def test_the_image_has_the_size_of_the_label_map(height, width):
    image = tiny_generator()(label_maps(2, height, width), noise())
    assert image.shape == (2, 3, height, width), f"a {height}x{width} label map gave {tuple(image.shape)}"


@pytest.mark.parametrize("height, width", [(64, 48), (80, 64)])
def test_a_size_that_cannot_be_halved_often_enough_is_refused(height, width):
    """Six scales halve the picture five times: by 32. The message names the size and the 32."""
    with pytest.raises(ValueError) as error:
        tiny_generator()(label_maps(2, height, width), noise())
    for number in (f"{height}x{width}", "32"):
        assert number in str(error.value), f"the message does not name {number}: {error.value}"


def test_the_image_is_within_minus_1_and_1():
    """However large the features: the last step is a tanh."""
    G = tiny_generator()
    G.to_image.weight.data *= 1000
    image = G(label_maps(), noise())
    assert image.abs().max() <= 1, f"values reach {image.abs().max().item()}, expected [-1, 1]"
    assert image.abs().max() > 0.99, "large features should come close to -1 or 1"


@pytest.mark.parametrize("padding, frames", [("zeros", True), ("reflect", False)])
def test_reflected_borders_draw_no_frame(padding, frames):
    """One class everywhere: with reflected borders every pixel sees the same, so that the picture is uniform;
    zeros around it make a border that can be seen."""
    G = tiny_generator(cross=0.7, own=0.7, padding=padding)
    image = G(torch.ones(1, 64, 64, dtype=torch.long), noise(0, 1))
    spread = (image - image[:, :, 32:33, 32:33]).abs().max().item()
    assert (spread > 1e-3) == frames, f"{padding}: pixels differ from the middle one by up to {spread:.1e}"


def test_features_are_what_the_last_convolution_sees():
    """G^f of Eq. 6, "the feature output of the generator before the final convolution"."""
    G = tiny_generator()
    image, features = G(label_maps(), noise(), return_features=True)
    assert features.shape == (2, 4, 64, 64), (
        f"G^f has the last width's 4 channels, got {tuple(features.shape)}")
    assert torch.equal(torch.tanh(G.to_image(features)), image), "tanh(conv(G^f)) is not the image"


def test_features_are_the_last_block_through_leaky_relu():
    """The activation between the last SPADE block and the last convolution: slope 0.2 below zero."""
    G, seen = tiny_generator(), []
    G.blocks[-1].register_forward_hook(lambda _, args, output: seen.append(output))
    _, features = G(label_maps(), noise(), return_features=True)
    expected = torch.where(seen[0] > 0, seen[0], 0.2 * seen[0])
    assert_is(features, expected, "G^f is not LeakyReLU(0.2) of the last block")


def test_the_image_pyramid_starts_from_the_low_resolution_label_map():
    """Sec. 3.2, Fig. 3: "takes a low-resolution label map as input": every 32nd pixel, one-hot, no noise."""
    G, seen = tiny_generator(), []
    G.first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    label_map = torch.randint(CLASSES, (2, 64, 128), generator=torch.Generator().manual_seed(0))
    G(label_map, noise())
    expected = torch.zeros(2, CLASSES, 2, 4)
    for b in range(2):
        for y in range(2):
            for x in range(4):
                expected[b, label_map[b, 32 * y, 32 * x], y, x] = 1
    assert_is(seen[0], expected, "the first convolution must see the one-hot label map at 1/32")


# --------------------------------------------------------------------------------- what the noise may touch

def test_the_same_z_gives_the_same_picture():
    """z is an argument: nothing in the generator draws numbers."""
    G = tiny_generator(cross=0.7, own=0.7)
    torch.manual_seed(1)
    once = G(label_maps(), noise(3))
    torch.manual_seed(2)
    assert torch.equal(G(label_maps(), noise(3)), once), (
        "two calls with one z differ: something else is random")


def test_another_z_gives_another_picture():
    """With the gates open, every image of the batch follows its own z."""
    G, z, changed = tiny_generator(cross=0.7, own=0.7), noise(3), noise(3)
    changed[1] = noise(4)[1]
    difference = (G(label_maps(), z) - G(label_maps(), changed)).abs().amax(dim=(1, 2, 3))
    assert difference[0] == 0, "image 0 kept its z and changed all the same"
    assert difference[1] > 1e-3, (
        f"image 1 got another z and changed by no more than {difference[1].item():.1e}")


def test_closed_gates_leave_z_without_any_effect():
    """(Eq. 2) "noise enters only through cross-attention": its
    gates at 0, the open self-attention carries none."""
    G = tiny_generator(cross=0.0, own=0.7)
    assert torch.equal(G(label_maps(), noise(3)), G(label_maps(), noise(4))), (
        "z has another way in than Eq. 2")


def test_attention_only_at_64x64_and_lower():
    """Sec. 3.2: "at spatial resolutions 64x64 and lower", of 256x256: the first two scales have none."""
    scales = [any(isinstance(m, CrossAttention) for m in block.modules())
              for block in Generator(CLASSES, **TINY).label_pyramid.blocks]
    assert scales == [False, False, True, True, True, True], f"strides 1, 2, 4, 8, 16, 32 attend: {scales}"


@pytest.mark.parametrize("attention_stride", [2, 4, 8])
def test_noise_enters_at_attention_stride_and_below(attention_stride):
    """The modulation maps of two z are the same down to that stride, and different from there on."""
    G = tiny_generator(cross=0.7, attention_stride=attention_stride)
    maps = []
    G.label_pyramid.register_forward_hook(lambda _, args, output: maps.append(output))
    for seed in (3, 4):
        G(label_maps(), noise(seed))
    for i, (h, other) in enumerate(zip(*maps)):
        attends = 2 ** i >= attention_stride
        assert torch.equal(h, other) != attends, (
            f"h_{i + 1} (stride {2 ** i}) {'ignores z' if attends else 'depends on z'}, "
            f"attention_stride is {attention_stride}")


# ------------------------------------------------------------------------------------------- instance offsets

def test_offsets_change_the_picture():
    """Sec. 4.1: the offset maps are concatenated to the label map."""
    G, offsets = tiny_generator(offset_channels=2), torch.zeros(2, 2, 64, 64)
    before = G(label_maps(), noise(), offsets)
    for channel, name in enumerate(("dy", "dx")):
        changed = offsets.clone()
        changed[:, channel, 16:48, 16:48] = 0.3
        assert (G(label_maps(), noise(), changed) - before).abs().max() > 1e-4, f"{name} has no effect"


def test_missing_offsets_are_refused():
    with pytest.raises(ValueError, match="2 offset channels.*None"):
        tiny_generator(offset_channels=2)(label_maps(), noise())


def test_offsets_for_a_generator_without_them_are_refused():
    with pytest.raises(ValueError, match="0 offset channels"):
        tiny_generator()(label_maps(), noise(), torch.zeros(2, 2, 64, 64))


def test_z_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(3, 6\)"):
        tiny_generator()(label_maps(2), noise(count=3))


# ------------------------------------------------------------------------------------------------- SPADE

def test_spade_is_dp_gans_formula():
    """(DP-GAN Eq. 1, 2) by loops: (1 + gamma) (x - mu) / sigma + beta, gamma and beta 3x3 convolutions of the
    condition, mu and sigma of the channel over the whole batch (training mode)."""
    torch.manual_seed(0)
    block = SPADE(channels=3, condition_channels=2)
    x, condition = 2 * torch.randn(2, 3, 2, 3) + 1, torch.randn(2, 2, 2, 3)
    weight, bias = block.to_gamma_beta.weight.tolist(), block.to_gamma_beta.bias.tolist()

    def convolution(b, o, y, x):
        total = bias[o]
        for i in range(2):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < 2 and 0 <= x + dx < 3:  # zero beyond the border
                        total += weight[o][i][dy + 1][dx + 1] * condition[b, i, y + dy, x + dx].item()
        return total

    expected = torch.zeros_like(x)
    for c in range(3):
        values = [x[b, c, i, j].item() for b in range(2) for i in range(2) for j in range(3)]
        mu = sum(values) / len(values)
        sigma = math.sqrt(sum((v - mu) ** 2 for v in values) / len(values) + 1e-5)
        for b in range(2):
            for i in range(2):
                for j in range(3):
                    gamma, beta = convolution(b, c, i, j), convolution(b, 3 + c, i, j)
                    expected[b, c, i, j] = (1 + gamma) * (x[b, c, i, j].item() - mu) / sigma + beta
    assert_is(block.train()(x, condition).detach(), expected,
              "SPADE is not (1 + gamma) (x - mu) / sigma + beta")


@pytest.mark.parametrize("in_channels, out_channels", [(4, 4), (4, 3)])
def test_a_spade_block_is_residual(in_channels, out_channels):
    """DP-GAN's block: SPADE, LeakyReLU(0.2), 3x3, twice, beside a shortcut. The shortcut has no activation,
    and a SPADE and a 1x1 convolution of its own only where the width changes."""
    torch.manual_seed(0)
    block = SPADEBlock(in_channels, out_channels, condition_channels=2, padding="zeros").eval()
    x, condition = torch.randn(2, in_channels, 4, 4), torch.randn(2, 2, 4, 4)
    y = block.spade_0(x, condition)
    y = block.spade_1(block.conv_0(torch.where(y > 0, y, 0.2 * y)), condition)
    y = block.conv_1(torch.where(y > 0, y, 0.2 * y))
    shortcut = x if in_channels == out_channels else block.conv_s(block.spade_s(x, condition))
    assert_is(block(x, condition).detach(), (shortcut + y).detach(), "shortcut + residual path was expected")


def test_the_image_pyramid_grows_by_nearest_neighbours():
    """Each block after the first sees the one before it, every pixel as a square of 2x2."""
    G, outputs, inputs = tiny_generator(), [], []
    for block in G.blocks:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    G(label_maps(), noise())
    for i in range(1, 6):
        expected = outputs[i - 1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert torch.equal(inputs[i], expected), f"block {i + 1} does not see block {i}, doubled"


def conditions(G):
    """What each SPADE block of G is conditioned on, lowest scale first, and h_1 ... h_L."""
    seen, maps = [], []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[1])) for block in G.blocks]
    hooks.append(G.label_pyramid.register_forward_hook(lambda _, args, output: maps.extend(output)))
    G(label_maps(), noise())
    for hook in hooks:
        hook.remove()
    return seen, maps


def test_every_spade_block_is_conditioned_on_its_map_and_the_lowest_one():
    """Sec. 3.2: h_i, "concatenated with a resized version of the ultimate map h_L"."""
    seen, maps = conditions(tiny_generator(cross=0.7, own=0.7))
    for condition, h_i in zip(seen, reversed(maps)):
        side = h_i.shape[2]
        resized = F.interpolate(maps[-1], size=(side, side), mode="bilinear", align_corners=False)
        assert_is(condition, torch.cat([h_i, resized], dim=1),
                  f"{side}x{side}: the condition is not [h_i, h_L resized]")


def test_the_lowest_map_conditions_every_scale():
    """Sec. 3.2: change h_L alone, and the second half of every
    condition changes, the first only at its own scale."""
    G = tiny_generator()
    before, _ = conditions(G)
    G.label_pyramid.blocks[-1].register_forward_hook(lambda _, args, h_L: h_L + 1)
    after, _ = conditions(G)
    for i, (old, new) in enumerate(zip(before, after)):
        side = new.shape[2]
        same = torch.equal(old[:, :4], new[:, :4])
        assert same == (i > 0), f"{side}x{side}: the first half is not this scale's own map"
        assert_is(new[:, 4:], old[:, 4:] + 1, f"{side}x{side}: h_L does not reach this scale")


def test_spectral_norm_on_the_block_convolutions_only():
    """DP-GAN: conv_0, conv_1 and the shortcut have spectral norm
    1; SPADE's own, the first and the last do not."""
    G = tiny_generator()
    for name, module in G.named_modules():
        if isinstance(module, nn.Conv2d):
            normed = nn.utils.parametrize.is_parametrized(module)
            wanted = name.startswith("blocks.") and name.split(".")[-1] in ("conv_0", "conv_1", "conv_s")
            assert normed == wanted, f"{name} is {'' if normed else 'not '}spectrally normalised"
            if normed:
                sigma = torch.linalg.matrix_norm(module.weight.flatten(1), 2).item()
                assert abs(sigma - 1) < 0.1, (
                    f"the largest singular value of {name} is {sigma:.3f}, expected 1")


# ----------------------------------------------------------------------------------------- the whole network

def test_gradient_reaches_every_parameter():
    """Open gates, eval mode: with batch statistics, a bias in
    front of a batch norm has no effect, rightly."""
    G = tiny_generator(offset_channels=2, cross=0.7, own=0.7)
    random = torch.Generator().manual_seed(0)
    offsets, weights = (torch.rand(2, n, 64, 64, generator=random) for n in (2, 3))
    (G(label_maps(), noise(), offsets) * weights).sum().backward()
    unreached = [name for name, p in G.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached, f"no gradient reaches {unreached}"


def test_the_gates_learn_from_the_first_step():
    """(Eq. 2) At eta = 0 the noise has no effect, but eta itself
    has a gradient: training can open the gate."""
    G = tiny_generator()
    (G(label_maps(), noise()) ** 2).sum().backward()
    stuck = [name for name, p in G.named_parameters() if name.endswith("eta") and not p.grad.any()]
    assert not stuck, f"these gates start at 0 and could never open: {stuck}"


def test_in_eval_mode_a_batch_is_its_images_one_by_one():
    """After some training, so that the running statistics are not the ones of the beginning."""
    G = tiny_generator(cross=0.7, own=0.7).train()
    for seed in range(3):
        G(label_maps(4), noise(seed, 4))
    G.eval()
    label_map, z = label_maps(4), noise(9, 4)
    with torch.no_grad():
        together, single = G(label_map, z), [G(label_map[i:i + 1], z[i:i + 1]) for i in range(4)]
    assert_is(together, torch.cat(single),
              "an image depends on its neighbours in the batch", atol=1e-5, rtol=0)
