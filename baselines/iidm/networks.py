"""IIDM's two networks: the autoencoder E, D and the denoising U-Net eps_theta (IIDM Sec. 2.2, Fig. 2).

h, w: sides of the latents, a quarter of the picture's sides H, W.
"""
import math
from collections import OrderedDict

import torch
import torch.nn as nn
import torch.nn.functional as F

from baselines.iidm.diffusion import ALPHA_BAR
from generator import SPADE, fused_attention, one_hot


def group_norm(channels, affine=True):
    """32 groups, as in every network here at full size; groups of 16 channels in narrower ones."""
    return nn.GroupNorm(32 if channels >= 128 else max(1, channels // 16), channels, eps=1e-6, affine=affine)


def conv3(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


# ------------------------------------------------------------------------------------------ autoencoder
# The names of its parts are those of the public weights, so that their files load.

class AutoencoderBlock(nn.Module):
    """Residual block: x (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm1, self.conv1 = group_norm(in_channels), conv3(in_channels, out_channels)
        self.norm2, self.conv2 = group_norm(out_channels), conv3(out_channels, out_channels)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class AutoencoderAttention(nn.Module):
    """Residual self-attention over pixels, one head, at the lowest scale. x keeps its shape."""

    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        A = fused_attention(*(to(y).flatten(2).transpose(1, 2) for to in (self.q, self.k, self.v)))  # (B, HW, C)
        return x + self.proj_out(A.transpose(1, 2).unflatten(2, x.shape[2:]))


def named(**parts):
    return nn.Sequential(OrderedDict(parts))


def blocks_of(in_channels, out_channels, count):
    widths = [in_channels] + [out_channels] * count
    return nn.Sequential(*map(AutoencoderBlock, widths, widths[1:]))


def middle(channels):
    return named(block_1=AutoencoderBlock(channels, channels), attn_1=AutoencoderAttention(channels),
                 block_2=AutoencoderBlock(channels, channels))


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, c, H / 4, W / 4)."""

    def __init__(self, channels, multipliers, blocks, latent_channels):
        super().__init__()
        self.conv_in, self.down, width = conv3(3, channels), nn.Sequential(), channels
        for i, multiplier in enumerate(multipliers):
            self.down.append(named(block=blocks_of(width, channels * multiplier, blocks)))
            width = channels * multiplier
            if i < len(multipliers) - 1:
                padded = nn.ZeroPad2d((0, 1, 0, 1))  # at the right and the bottom alone
                self.down[i].downsample = named(pad=padded, conv=nn.Conv2d(width, width, 3, stride=2))
        self.mid = middle(width)
        self.norm_out, self.conv_out = group_norm(width), conv3(width, latent_channels)

    def forward(self, x):
        return self.conv_out(F.silu(self.norm_out(self.mid(self.down(self.conv_in(x))))))


class Decoder(nn.Module):
    """(B, c, H / 4, W / 4) -> (B, 3, H, W)."""

    def __init__(self, channels, multipliers, blocks, latent_channels):
        super().__init__()
        width, scales = channels * multipliers[-1], []
        self.conv_in, self.mid = conv3(latent_channels, width), middle(width)
        for i, multiplier in reversed(list(enumerate(multipliers))):
            scales.append(named(block=blocks_of(width, channels * multiplier, blocks + 1)))
            width = channels * multiplier
            if i > 0:
                scales[-1].upsample = named(enlarge=nn.Upsample(scale_factor=2.0), conv=conv3(width, width))
        self.up = nn.ModuleList(scales[::-1])  # the public weights count from the picture
        self.norm_out, self.conv_out = group_norm(width), conv3(width, 3)

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for scale in reversed(self.up):
            x = scale(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """E and D: encode (B, 3, H, W) in [-1, 1] -> (B, c, H / 4, W / 4), decode back.

    PAPER: a "pretrained autoencoder" in the manner of latent diffusion. / HERE: the architecture of the VQ-f4 weights,
    downsampling 4. / WHY: its released code loads these.
    codes: entries of the codebook, 8192 with the public weights, 0 when trained here.
    PAPER: no codebook. / HERE: if the weights have one, D first replaces every latent pixel by its nearest entry; E
    does not. / WHY: the released code.
    """

    def __init__(self, channels=128, multipliers=(1, 2, 4), blocks=2, latent_channels=3, codes=0):
        super().__init__()
        self.encoder = Encoder(channels, multipliers, blocks, latent_channels)
        self.decoder = Decoder(channels, multipliers, blocks, latent_channels)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, latent_channels)}) if codes else None
        self.quant_conv, self.post_quant_conv = (nn.Conv2d(latent_channels, latent_channels, 1) for _ in range(2))

    def encode(self, image):
        return self.quant_conv(self.encoder(image))                               # (B, c, H / 4, W / 4)

    def decode(self, z):
        if self.quantize is not None:
            codes = self.quantize["embedding"].weight                             # (codes, c)
            nearest = [codes[torch.cdist(one.float().flatten(1).T, codes).argmin(dim=1)] for one in z]  # (hw, c) each
            z = torch.stack(nearest).transpose(1, 2).unflatten(2, z.shape[2:])    # (B, c, h, w)
        return self.decoder(self.post_quant_conv(z))                              # (B, 3, H, W)


# ------------------------------------------------------------------------------------------------ U-Net

def zeroed(conv):
    """conv with weights and biases of 0: a residual branch that ends in it starts as nothing."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def block_norm(channels, num_classes, hidden):
    """A group norm; where the block sees the label map, SPADE over such groups in place of the batch."""
    if not num_classes:
        return group_norm(channels)
    norm = SPADE(channels, num_classes, hidden=hidden)
    norm.norm = group_norm(channels, affine=False)
    return norm


def normalise(norm, x, modulation):
    """norm(x); where the label map has given gamma and beta, with these."""
    return norm(x) if modulation is None else torch.addcmul(modulation[1], norm.norm(x), 1 + modulation[0])


class UNetBlock(nn.Module):
    """Residual block of eps_theta: x (B, C_in, h, w), time (B, K) -> (B, C_out, h', w').

    strides: of x and of the result, in latent pixels; the block halves or doubles the size where they differ.
    num_classes: 0 in the encoder; elsewhere both norms are SPADE group norms of the label map.
    """

    def __init__(self, in_channels, out_channels, time_channels, strides, num_classes=0, hidden=0):
        super().__init__()
        self.strides = strides
        self.norm_0, self.conv_0 = block_norm(in_channels, num_classes, hidden), conv3(in_channels, out_channels)
        self.to_scale_shift = nn.Linear(time_channels, 2 * out_channels)
        self.norm_1 = block_norm(out_channels, num_classes, hidden)
        self.conv_1 = zeroed(conv3(out_channels, out_channels))
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def modulation(self, labels):
        """labels {stride: (B, C, h, w)} -> (gamma, beta) of both norms."""
        return [norm.modulation(labels[stride]) for norm, stride in zip((self.norm_0, self.norm_1), self.strides)]

    def forward(self, x, time, modulation=(None, None)):
        y = self.resized(F.silu(normalise(self.norm_0, x, modulation[0])))
        scale, shift = self.to_scale_shift(F.silu(time))[:, :, None, None].chunk(2, dim=1)  # (B, C_out, 1, 1) each
        y = torch.addcmul(shift, normalise(self.norm_1, self.conv_0(y), modulation[1]), 1 + scale)  # (B, C_out, h', w')
        return self.shortcut(self.resized(x)) + self.conv_1(F.silu(y))

    def resized(self, x):
        before, after = self.strides
        larger = F.interpolate(x, scale_factor=2.0).to(x.dtype) if before > after else x  # as in generator.py
        return F.avg_pool2d(x, 2) if before < after else larger


class UNetAttention(nn.Module):
    """Residual self-attention over pixels in heads of head_channels. x keeps its shape."""

    def __init__(self, channels, head_channels):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm, self.to_query_key_value = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        B, C, h, w = x.shape
        q_k_v = self.to_query_key_value(self.norm(x)).view(B, 3, self.heads, C // self.heads, h * w).unbind(dim=1)
        A = fused_attention(*(part.flatten(0, 1).transpose(1, 2) for part in q_k_v))      # (B heads, hw, C / heads)
        return x + self.out(A.transpose(1, 2).reshape(B, C, h, w))


class UNet(nn.Module):
    """eps_theta(z_t, m, t): z (B, c, h, w), t (B,), the label map's modulations -> noise (B, c, h, w).

    The label map enters by SPADE group norms in the middle and the decoder. Its gamma and beta of every norm depend on
    neither z nor t: modulations() computes them once for all denoising steps of a picture.
    multipliers: channels of each scale, finest first; h and w must be divisible by 2^(len(multipliers) - 1).
    pixels: label-map pixels a side of one latent pixel.
    """

    def __init__(self, num_classes, latent_channels, channels, multipliers, blocks, attention_strides, head_channels,
                 hidden, pixels):
        super().__init__()
        self.num_classes, self.channels, self.pixels, time = num_classes, channels, pixels, 4 * channels
        self.strides = [2 ** i for i in range(len(multipliers))]
        self.time = nn.Sequential(nn.Linear(channels, time), nn.SiLU(), nn.Linear(time, time))
        self.first = conv3(latent_channels, channels)

        def attends(stride, width):
            return UNetAttention(width, head_channels) if stride in attention_strides else nn.Identity()
        self.down, width, skips = nn.ModuleList(), channels, [channels]
        for stride, multiplier in zip(self.strides, multipliers):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([UNetBlock(width, channels * multiplier, time, (stride, stride)),
                                                attends(stride, channels * multiplier)]))
                width = channels * multiplier
                skips.append(width)
            if stride < self.strides[-1]:
                self.down.append(nn.ModuleList([UNetBlock(width, width, time, (stride, 2 * stride)), nn.Identity()]))
                skips.append(width)
        label_map = (num_classes, hidden)
        self.middle = nn.ModuleList([UNetBlock(width, width, time, (stride, stride), *label_map),
                                     UNetAttention(width, head_channels),
                                     UNetBlock(width, width, time, (stride, stride), *label_map)])
        self.up = nn.ModuleList()
        for stride, multiplier in zip(self.strides[::-1], multipliers[::-1]):
            for _ in range(blocks + 1):
                block = UNetBlock(width + skips.pop(), channels * multiplier, time, (stride, stride), *label_map)
                width = channels * multiplier
                self.up.append(nn.ModuleList([block, attends(stride, width), nn.Identity()]))
            if stride > 1:
                self.up[-1][2] = UNetBlock(width, width, time, (stride, stride // 2), *label_map)
        self.norm, self.out = group_norm(width), zeroed(conv3(width, latent_channels))

    def modulations(self, label_map, known=None):
        """label_map (B, 4 h, 4 w) -> [[(gamma, beta), (gamma, beta)], ...] of the blocks that see it, as they run.

        known (B,) bool: False leaves a label map out, for classifier-free guidance; every class is 0 there.
        """
        labels = one_hot(label_map, self.num_classes, self.first.weight.dtype)            # (B, C, 4 h, 4 w)
        if known is not None:
            labels = labels * known[:, None, None, None]
        # PAPER: silent on how m meets features of a quarter of its size and less. / HERE: the share of each class in
        # the pixels that a feature covers. / WHY: nearest neighbour, the released code's way, loses thin objects.
        shares = {1: F.avg_pool2d(labels, self.pixels)}                                   # (B, C, h, w)
        for stride in self.strides[1:]:
            shares[stride] = F.avg_pool2d(shares[stride // 2], 2)                         # (B, C, h / s, w / s)
        parts = (*self.middle, *(part for level in self.up for part in level))
        return [part.modulation(shares) for part in parts if isinstance(part, UNetBlock)]

    def forward(self, z, t, modulations):
        time = self.time(time_features(t, self.channels).to(z.dtype))                     # (B, 4 channels)
        modulations = iter(modulations)
        y = self.first(z)                                                                 # (B, channels, h, w)
        skips = [y]
        for block, attends in self.down:
            y = attends(block(y, time))
            skips.append(y)
        before, attends, after = self.middle
        y = after(attends(before(y, time, next(modulations))), time, next(modulations))
        for block, attends, enlarge in self.up:
            y = attends(block(torch.cat([y, skips.pop()], dim=1), time, next(modulations)))
            if isinstance(enlarge, UNetBlock):
                y = enlarge(y, time, next(modulations))
        return self.out(F.silu(self.norm(y)))                                             # (B, c, h, w)


def time_features(t, channels):
    """t (B,) -> (B, channels): cosines and sines of t at wavelengths from 2 pi to 20,000 pi."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(channels // 2, device=t.device) / (channels // 2))
    angles = t.float()[:, None] * frequencies                                             # (B, channels / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class IIDM(nn.Module):
    """E, D and eps_theta, with the scale that gives the latents unit variance. The defaults are the full-size model.

    PAPER: no size of the U-Net. / HERE: the released code's, which is SDM's, without the learned variance. / WHY: IIDM
    Eq. 4 and 5 know no learned variance.
    """

    def __init__(self, num_classes, autoencoder_channels=128, autoencoder_multipliers=(1, 2, 4), autoencoder_blocks=2,
                 latent_channels=3, codes=0, channels=256, multipliers=(1, 1, 2, 3, 4), blocks=2,
                 attention_strides=(4, 8, 16), head_channels=64, hidden=128):
        super().__init__()
        self.num_classes, self.latent_channels = num_classes, latent_channels
        self.shrinks = 2 ** (len(autoencoder_multipliers) - 1)                            # 4
        self.downsampling = self.shrinks * 2 ** (len(multipliers) - 1)                    # of the smallest features
        self.autoencoder = Autoencoder(autoencoder_channels, autoencoder_multipliers, autoencoder_blocks,
                                       latent_channels, codes)
        self.unet = UNet(num_classes, latent_channels, channels, multipliers, blocks, attention_strides, head_channels,
                         hidden, self.shrinks)
        # PAPER: silent on the scale of the latents. / HERE: divided by their standard deviation over training batches,
        # kept in the checkpoint. / WHY: IIDM Eq. 1 and 2 are made for unit variance.
        self.register_buffer("latent_scale", torch.ones(()))
        self.register_buffer("alpha_bar", torch.tensor(ALPHA_BAR, dtype=torch.float32), persistent=False)

    def encode(self, image):
        """image (B, 3, H, W) in [-1, 1] -> z_0 (B, c, H / 4, W / 4) of about unit variance."""
        return self.autoencoder.encode(image).float() * self.latent_scale

    def decode(self, z):
        """z_0 -> image (B, 3, H, W), in [-1, 1] but for what D overshoots."""
        return self.autoencoder.decode(z / self.latent_scale).float()
