"""IIDM, the image-to-image diffusion system: a picture from a label map and a style reference, by denoising.

Liu and Chang, "IIDM: Image-to-Image Diffusion Model for Semantic Image Synthesis". The paper prints equations and two
algorithms, but no sizes; those are of its released code, and the README says where.

    python train.py --model iidm --dataset toy                              autoencoder, then denoising U-Net
    python sample.py --checkpoint EMA --dataset toy --reference train       Algorithm 2

Read from the bottom of the file upwards:

    train                 the loop: autoencoder first, then Algorithm 1
    generate              Algorithm 2: K rounds of noising and denoising
      colour_transfer     the reference's Lab means and deviations (IIDM Eq. 6)
      denoise             t = T ... 1 (IIDM Eq. 3)
        ancestral_step    one step (IIDM Eq. 5); ddim_step is the switch
    average               model ensemble (IIDM Eq. 7)
    denoising_loss        Algorithm 1 (IIDM Eq. 4)
      add_noise           (IIDM Eq. 1, 2)
    IIDM                  the two networks and the scale of the latents
      UNet                eps_theta(z_t, m, t)
        UNetBlock         residual block, conditioned on t and, in the middle and the decoder, on m by SPADE
          SPADE           generator.py's, over groups instead of the batch
      Autoencoder         E and D, of the architecture of the public VQ-f4 weights

    paper         | here           | shape
    X_R, X_G      | reference, image | (B, 3, H, W) in [-1, 1]
    m             | label_map      | (B, H, W) integers 0..C-1; one-hot only here, on the device
    z_t           | z              | (B, c, H / 4, W / 4), of about unit variance
    t             | t              | 1 ... 1000; z_0 is clean
    epsilon       | noise          | as z, an argument: no equation in this file draws noise
    alpha_bar_t   | alpha_bar[t]   | (1001,), alpha_bar[0] = 1

The total score T (IIDM Eq. 8) and its parts are evaluate.py's.
"""
import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from generator import SPADE, attention, one_hot, parameters_by_part, to_pixels

STEPS = 1000                                    # of the whole diffusion
START, ROUNDS = 320, 3                          # T and K of Algorithm 2
# PAPER: a "pretrained autoencoder" in the manner of latent diffusion. / HERE: the architecture of the VQ-f4 weights,
# downsampling 4. / WHY: its released code loads these.
AUTOENCODER_CHANNELS, AUTOENCODER_MULTIPLIERS, AUTOENCODER_BLOCKS, LATENT_CHANNELS = 128, (1, 2, 4), 2, 3
# PAPER: no size of the U-Net. / HERE: the released code's, which is SDM's, without the learned variance.
# WHY: IIDM Eq. 4 and 5 know no learned variance.
CHANNELS, MULTIPLIERS, BLOCKS, ATTENTION_STRIDES, HEAD_CHANNELS, HIDDEN = 256, (1, 1, 2, 3, 4), 2, (4, 8, 16), 64, 128


# ------------------------------------------------------------------------------------------ autoencoder

def group_norm(channels, affine=True):
    """32 groups, as in every network here at full size; groups of 16 channels in narrower ones."""
    return nn.GroupNorm(32 if channels >= 128 else max(1, channels // 16), channels, eps=1e-6, affine=affine)


class AutoencoderBlock(nn.Module):
    """Residual block: x (B, C_in, H, W) -> (B, C_out, H, W). The names of its parts are those of the public weights."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm1, self.conv1 = group_norm(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AutoencoderAttention(nn.Module):
    """Residual self-attention over pixels, one head, at the lowest scale. x keeps its shape."""

    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        y = self.norm(x)
        A = attention(*(to(y).flatten(2).transpose(1, 2) for to in (self.q, self.k, self.v)))  # (B, HW, C)
        return x + self.proj_out(A.transpose(1, 2).unflatten(2, x.shape[2:]))


def middle(channels):
    return nn.ModuleDict({"block_1": AutoencoderBlock(channels, channels), "attn_1": AutoencoderAttention(channels),
                          "block_2": AutoencoderBlock(channels, channels)})


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, c, H / 4, W / 4)."""

    def __init__(self, channels, multipliers, blocks, latent_channels):
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down, width = nn.ModuleList(), channels
        for i, multiplier in enumerate(multipliers):
            level = nn.ModuleDict({"block": nn.ModuleList()})
            for _ in range(blocks):
                level["block"].append(AutoencoderBlock(width, channels * multiplier))
                width = channels * multiplier
            if i < len(multipliers) - 1:
                level["downsample"] = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride=2)})
            self.down.append(level)
        self.mid = middle(width)
        self.norm_out, self.conv_out = group_norm(width), nn.Conv2d(width, latent_channels, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            for block in level["block"]:
                x = block(x)
            if "downsample" in level:
                x = level["downsample"]["conv"](F.pad(x, (0, 1, 0, 1)))           # (B, C, H / 2, W / 2)
        for part in self.mid.values():
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """(B, c, H / 4, W / 4) -> (B, 3, H, W)."""

    def __init__(self, channels, multipliers, blocks, latent_channels):
        super().__init__()
        width = channels * multipliers[-1]
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.mid = middle(width)
        levels = []
        for i, multiplier in reversed(list(enumerate(multipliers))):
            level = nn.ModuleDict({"block": nn.ModuleList()})
            for _ in range(blocks + 1):
                level["block"].append(AutoencoderBlock(width, channels * multiplier))
                width = channels * multiplier
            if i > 0:
                level["upsample"] = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1)})
            levels.append(level)
        self.up = nn.ModuleList(levels[::-1])  # the public weights count from the picture
        self.norm_out, self.conv_out = group_norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z):
        x = self.conv_in(z)
        for part in self.mid.values():
            x = part(x)
        for level in reversed(self.up):
            for block in level["block"]:
                x = block(x)
            if "upsample" in level:
                x = level["upsample"]["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))  # (B, C, 2 H, 2 W)
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    """E and D (IIDM Sec. 2.2): encode (B, 3, H, W) in [-1, 1] -> (B, c, H / 4, W / 4), decode back.

    codes: entries of the codebook, 8192 with the public weights, 0 when trained here. PAPER: no codebook. / HERE: where
    the weights have one, D puts every latent pixel on its nearest entry first, E does not. / WHY: the released code.
    """

    def __init__(self, channels=AUTOENCODER_CHANNELS, multipliers=AUTOENCODER_MULTIPLIERS, blocks=AUTOENCODER_BLOCKS,
                 latent_channels=LATENT_CHANNELS, codes=0):
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

def zero(conv):
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def normalise(norm, x, modulation):
    return norm(x) if modulation is None else norm.modulate(x, *modulation)


class UNetBlock(nn.Module):
    """Residual block of eps_theta: x (B, C_in, h, w), time (B, K) -> (B, C_out, h', w').

    strides: of x and of the result, in latent pixels; the block halves or doubles the size where they differ.
    num_classes: 0 in the encoder; elsewhere both norms are SPADE group norms of the label map.
    """

    def __init__(self, in_channels, out_channels, time_channels, strides, num_classes=0, hidden=0):
        super().__init__()
        self.strides = strides
        make = (lambda channels: SPADE(channels, num_classes, hidden=hidden, norm=group_norm(channels, affine=False))) \
            if num_classes else group_norm
        self.norm_0, self.conv_0 = make(in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.to_scale_shift = nn.Linear(time_channels, 2 * out_channels)
        self.norm_1, self.conv_1 = make(out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        zero(self.conv_1)  # every block starts as its shortcut

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
        if before < after:
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if before > after else x


class UNetAttention(nn.Module):
    """Residual self-attention over pixels in heads of head_channels. x keeps its shape."""

    def __init__(self, channels, head_channels):
        super().__init__()
        self.heads = max(1, channels // head_channels)
        self.norm, self.to_query_key_value = group_norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        zero(self.out)

    def forward(self, x):
        B, C, h, w = x.shape
        q_k_v = self.to_query_key_value(self.norm(x)).view(B, 3, self.heads, C // self.heads, h * w).unbind(dim=1)
        A = attention(*(part.flatten(0, 1).transpose(1, 2) for part in q_k_v))            # (B heads, hw, C / heads)
        return x + self.out(A.transpose(1, 2).reshape(B, C, h, w))


class UNet(nn.Module):
    """eps_theta(z_t, m, t) (IIDM Sec. 2.2): z (B, c, h, w), t (B,), the label map's modulations -> noise (B, c, h, w).

    The label map enters by SPADE group norms in the middle and the decoder. What it gives, gamma and beta of every
    norm, depends on neither z nor t: modulations() computes it once for all denoising steps of a picture.
    multipliers: channels of each scale, finest first; h and w must be divisible by 2^(len(multipliers) - 1).
    pixels: label-map pixels a side of one latent pixel.
    """

    def __init__(self, num_classes, latent_channels=LATENT_CHANNELS, channels=CHANNELS, multipliers=MULTIPLIERS,
                 blocks=BLOCKS, attention_strides=ATTENTION_STRIDES, head_channels=HEAD_CHANNELS, hidden=HIDDEN, pixels=4):
        super().__init__()
        self.num_classes, self.channels, self.pixels, time_channels = num_classes, channels, pixels, 4 * channels
        self.strides = [2 ** i for i in range(len(multipliers))]
        self.time = nn.Sequential(nn.Linear(channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels))
        self.first = nn.Conv2d(latent_channels, channels, 3, padding=1)

        def attends(stride, width):
            return UNetAttention(width, head_channels) if stride in attention_strides else nn.Identity()
        self.down, width, skips = nn.ModuleList(), channels, [channels]
        for stride, multiplier in zip(self.strides, multipliers):
            for _ in range(blocks):
                self.down.append(nn.ModuleList([UNetBlock(width, channels * multiplier, time_channels, (stride, stride)),
                                                attends(stride, channels * multiplier)]))
                width = channels * multiplier
                skips.append(width)
            if stride < self.strides[-1]:
                self.down.append(nn.ModuleList([UNetBlock(width, width, time_channels, (stride, 2 * stride)), nn.Identity()]))
                skips.append(width)
        conditioned = (num_classes, hidden)
        self.middle = nn.ModuleList([UNetBlock(width, width, time_channels, (stride, stride), *conditioned),
                                     UNetAttention(width, head_channels),
                                     UNetBlock(width, width, time_channels, (stride, stride), *conditioned)])
        self.up = nn.ModuleList()
        for stride, multiplier in zip(self.strides[::-1], multipliers[::-1]):
            for i in range(blocks + 1):
                self.up.append(nn.ModuleList([
                    UNetBlock(width + skips.pop(), channels * multiplier, time_channels, (stride, stride), *conditioned),
                    attends(stride, channels * multiplier), nn.Identity()]))
                width = channels * multiplier
            if stride > 1:
                self.up[-1][2] = UNetBlock(width, width, time_channels, (stride, stride // 2), *conditioned)
        self.norm, self.out = group_norm(width), nn.Conv2d(width, latent_channels, 3, padding=1)
        zero(self.out)

    def conditioned_blocks(self):
        return [block for block in (*self.middle, *(part for level in self.up for part in level))
                if isinstance(block, UNetBlock)]

    def modulations(self, label_map, known=None):
        """label_map (B, 4 h, 4 w) -> [[(gamma, beta), (gamma, beta)], ...] of every conditioned block, in order.

        known (B,) bool: False leaves a label map out, for classifier-free guidance; every class is 0 there.
        """
        labels = one_hot(label_map, self.num_classes, self.first.weight.dtype)            # (B, C, 4 h, 4 w)
        if known is not None:
            labels = labels * known[:, None, None, None]
        # PAPER: silent on how m meets features of a quarter of its size and less. / HERE: the share of each class in
        # the pixels that a feature covers. / WHY: nearest neighbour, the released code's way, loses thin objects.
        shares = {1: F.avg_pool2d(labels, self.pixels)}                                   # (B, C, h, w)
        for stride in self.strides[1:]:
            shares[stride] = F.avg_pool2d(shares[stride // 2], 2)                         # (B, C, h / stride, w / stride)
        return [block.modulation(shares) for block in self.conditioned_blocks()]

    def forward(self, z, t, modulations):
        time = self.time(time_features(t, self.channels).to(z.dtype))           # (B, 4 channels)
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
    """E, D and eps_theta, with the scale that gives the latents unit variance. The defaults are the full-size model."""

    def __init__(self, num_classes, autoencoder_channels=AUTOENCODER_CHANNELS,
                 autoencoder_multipliers=AUTOENCODER_MULTIPLIERS, autoencoder_blocks=AUTOENCODER_BLOCKS,
                 latent_channels=LATENT_CHANNELS, codes=0, channels=CHANNELS, multipliers=MULTIPLIERS, blocks=BLOCKS,
                 attention_strides=ATTENTION_STRIDES, head_channels=HEAD_CHANNELS, hidden=HIDDEN):
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


# -------------------------------------------------------------------------------------------- diffusion

def noise_schedule():
    """-> (beta, alpha_bar), lists of floats over t = 0 ... STEPS, with beta_0 = 0 and alpha_bar_0 = 1.

    PAPER: "beta_t = 0.001 t". / HERE: linear from 1e-4 at t = 1 to 0.02 at t = 1000. / WHY: as printed, beta_1000 is 1
    and sqrt(alpha_bar_320) is 3e-13: nothing of the reference would be left in IIDM Eq. 1. The released code, as DDPM, has
    this one, in which sqrt(alpha_bar_320) is 0.59.
    """
    beta = [0.0] + [1e-4 + (0.02 - 1e-4) * (t - 1) / (STEPS - 1) for t in range(1, STEPS + 1)]
    alpha_bar = [1.0]
    for t in range(1, STEPS + 1):
        alpha_bar.append(alpha_bar[-1] * (1 - beta[t]))  # alpha_t = 1 - beta_t, alpha_bar_t = prod_s alpha_s
    return beta, alpha_bar


BETA, ALPHA_BAR = noise_schedule()


def add_noise(z_0, alpha_bar_t, noise):
    """z_t of a clean latent (IIDM Eq. 1, 2). z_0, noise (B, c, h, w); alpha_bar_t a number or (B,)."""
    if isinstance(alpha_bar_t, torch.Tensor):
        alpha_bar_t = alpha_bar_t[:, None, None, None]                                    # (B, 1, 1, 1)
    # z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) epsilon     (IIDM Eq. 2), and with t = T (IIDM Eq. 1)
    return alpha_bar_t ** 0.5 * z_0 + (1 - alpha_bar_t) ** 0.5 * noise


def denoising_loss(model, image, label_map, t, noise, known=None):
    """One step of Algorithm 1 up to its gradient (IIDM Eq. 4): a scalar, in float32.

    image (B, 3, H, W) in [-1, 1], label_map (B, H, W), t (B,) in 1 ... 1000, noise (B, c, h, w); known as in
    UNet.modulations.
    """
    with torch.no_grad():
        z_0 = model.encode(image)                                                         # (B, c, h, w)
    z_t = add_noise(z_0, model.alpha_bar[t], noise)                                       # (IIDM Eq. 2)
    predicted = model.unet(z_t, t, model.unet.modulations(label_map, known)).float()
    # L_(t-1) = E[gamma_t || epsilon - eps_theta(z_t, m, t) ||^2]                         (IIDM Eq. 4)
    # PAPER: gamma_t "is a constant at t", the norm is a sum. / HERE: 1 / (c h w) for every t, a mean. / WHY: DDPM's
    # simple loss, which the released code has, too (beside a bound for its learned variance).
    return (noise - predicted).square().mean()


def ancestral_step(z, predicted, t, noise):
    """z_(t-1) from z_t and the predicted noise (IIDM Eq. 5). noise as z, or None for 0 (t = 1 needs none)."""
    # z_(t-1) = gamma~_t z_t - beta~_t eps_theta(z_t, m, t) + sigma~_t epsilon           (IIDM Eq. 5)
    # PAPER: gamma~_t = sqrt(ab_(t-1)) beta_t / (sqrt(ab_t) (1 - ab_t) + sqrt(ab_t) (1 - ab_(t-1)) / (1 - ab_t)), a
    # sqrt(1 - alpha_t) in beta~_t and sigma~_t = (1 - ab_(t-1)) / (1 - ab_t beta_t). / HERE: the second summand of
    # gamma~_t is outside of its fraction, with sqrt(alpha_t); beta~_t has sqrt(1 - ab_t); sigma~_t^2 = (1 - ab_(t-1)) /
    # (1 - ab_t) beta_t. / WHY: that is the posterior q(z_(t-1) | z_t, z_0) of DDPM; with the printed coefficients less
    # than a hundredth of the reference is left after one step, and every chain ends in grey (tests/test_iidm.py).
    ab, ab_before, beta = ALPHA_BAR[t], ALPHA_BAR[t - 1], BETA[t]
    gamma_tilde = ab_before ** 0.5 * beta / (ab ** 0.5 * (1 - ab)) + (1 - beta) ** 0.5 * (1 - ab_before) / (1 - ab)
    beta_tilde = ab_before ** 0.5 * (1 - ab) ** 0.5 * beta / (ab ** 0.5 * (1 - ab))
    sigma_tilde = ((1 - ab_before) / (1 - ab) * beta) ** 0.5
    z = gamma_tilde * z - beta_tilde * predicted
    return z if noise is None else z + sigma_tilde * noise


def ddim_step(z, predicted, t, s):
    """z_s from z_t, s < t, without noise (DDIM with eta 0): the switch that the released code uses."""
    z_0 = (z - (1 - ALPHA_BAR[t]) ** 0.5 * predicted) / ALPHA_BAR[t] ** 0.5
    return ALPHA_BAR[s] ** 0.5 * z_0 + (1 - ALPHA_BAR[s]) ** 0.5 * predicted


def denoise(predict, z, T, noise, ddim_steps=0, show=False):
    """z_T -> z_0 (IIDM Eq. 3). predict(z, t): the noise in z; noise(): a draw from N(0, I) of z's shape.

    ddim_steps: 0 takes every t from T to 1 by IIDM Eq. 5; N takes N steps of DDIM, evenly spread.
    """
    # p(z_(0:T) | m) = p(z_T) prod_(t=1)^T p(z_(t-1) | z_t, m)                             (IIDM Eq. 3)
    steps = min(ddim_steps or T, T)
    times = [round(T * (steps - i) / steps) for i in range(steps + 1)]                    # T, ..., 0
    for t, s in tqdm(list(zip(times, times[1:])), desc="denoising", leave=False, disable=None if show else True):
        predicted = predict(z, t)
        z = ddim_step(z, predicted, t, s) if ddim_steps else ancestral_step(z, predicted, t, noise() if t > 1 else None)
    return z


def average(a, b):
    """Model ensemble of two state dicts (IIDM Eq. 7). Raises ValueError where they cannot be of one run."""
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        raise ValueError("two architectures")
    if any(not torch.equal(a[key], b[key]) for key in a if key.startswith("autoencoder.") or key == "latent_scale"):
        raise ValueError("two autoencoders, whose latents do not mean the same")
    return {key: (a[key] + b[key]) / 2 for key in a}  # theta* = (theta^a + theta^b) / 2  (IIDM Eq. 7)


# -------------------------------------------------------------------------------------- colour transfer

RGB_TO_XYZ = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                           [0.0193339, 0.1191920, 0.9503041]], dtype=torch.float64)  # of linear sRGB
WHITE = RGB_TO_XYZ.sum(dim=1)                                                       # D65
XYZ_TO_RGB = torch.linalg.inv(RGB_TO_XYZ)
LAB_EDGE, LAB_SLOPE = (6 / 29) ** 3, (29 / 6) ** 2 / 3


def rgb_to_lab(image):
    """(B, 3, H, W) sRGB in [-1, 1] -> (B, 3, H, W) CIE L*a*b*, float64. Odd beyond the gamut, so that it has an inverse."""
    rgb = (image.double() + 1) / 2
    linear = torch.where(rgb.abs() <= 0.04045, rgb / 12.92, rgb.sign() * ((rgb.abs() + 0.055) / 1.055) ** 2.4)
    x = torch.einsum("ij,bjhw->bihw", (RGB_TO_XYZ / WHITE[:, None]).to(image.device), linear)
    f = torch.where(x > LAB_EDGE, x.clamp_min(LAB_EDGE) ** (1 / 3), LAB_SLOPE * x + 4 / 29)
    return torch.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)


def lab_to_rgb(lab):
    """The inverse of rgb_to_lab."""
    y = (lab[:, 0] + 16) / 116
    f = torch.stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200], dim=1)
    x = torch.where(f > 6 / 29, f ** 3, (f - 4 / 29) / LAB_SLOPE)
    linear = torch.einsum("ij,bjhw->bihw", (XYZ_TO_RGB * WHITE).to(lab.device), x)
    rgb = torch.where(linear.abs() <= 0.04045 / 12.92, linear * 12.92,
                      linear.sign() * (1.055 * linear.abs() ** (1 / 2.4) - 0.055))
    return 2 * rgb - 1


def colour_transfer(image, reference):
    """CT(X_G, X_R) (IIDM Eq. 6), after Reinhard: image with the Lab means and deviations of reference.

    (B, 3, H, W) and (B, 3, H', W') in [-1, 1] -> (B, 3, H, W) float64, which may leave [-1, 1]. A channel of image
    without any deviation gets the mean alone.
    PAPER: the space is not said; Reinhard's is l alpha beta. / HERE: CIE L*a*b*, means and deviations of the whole
    picture, in float64. / WHY: the released code's space, without its 8 bits.
    """
    lab, wanted = rgb_to_lab(image), rgb_to_lab(reference)                                # (B, 3, H, W), (B, 3, H', W')
    mean, mean_R = (x.mean(dim=(2, 3), keepdim=True) for x in (lab, wanted))              # (B, 3, 1, 1)
    std, std_R = (x.std(dim=(2, 3), correction=0, keepdim=True) for x in (lab, wanted))   # (B, 3, 1, 1)
    # X~_G = CT(X_G, X_R): (x - mean_G) std_R / std_G + mean_R in each channel            (IIDM Eq. 6)
    ratio = torch.where(std > 1e-9, std_R / std.clamp_min(1e-9), 1.0)
    return lab_to_rgb((lab - mean) * ratio + mean_R)


# -------------------------------------------------------------------------------------------- inference

class Inference(NamedTuple):
    """How Algorithm 2 runs. The defaults are the paper's.

    start: T of each of the K rounds. PAPER: K is not given; "stops at X_G^2" after X_G and X_G^1. / HERE: K = 3, T =
    320 in each. / WHY: three pictures. The released code has three rounds, too, of DDIM from t = 600, 640 and 400.
    """
    start: tuple = (START,) * ROUNDS
    from_noise: bool = False        # the plain DM of Table 2: one round from N(0, I) at t = 1000, no reference
    colour_transfer: bool = True
    ddim_steps: int = 0             # 0: IIDM Eq. 5, every step
    guidance: float = 1.0           # 1: none, as in the paper


@torch.no_grad()
def generate(model, label_map, reference, seeds, inference, show=False):
    """Algorithm 2: label_map (B, H, W) int64, reference (B, 3, H, W) in [-1, 1] or None -> image (B, 3, H, W) in [-1, 1].

    seeds: one for each picture, from which all of its noise comes, so that it does not depend on its batch. Raises
    ValueError where the shapes do not fit.
    """
    B, H, W = label_map.shape
    if H % model.downsampling or W % model.downsampling:
        raise ValueError(f"label map of {H}x{W}: both sides must be divisible by {model.downsampling}")
    if not inference.from_noise and (reference is None or reference.shape != (B, 3, H, W)):
        raise ValueError(f"expected references ({B}, 3, {H}, {W}), got {None if reference is None else tuple(reference.shape)}")
    if len(seeds) != B:
        raise ValueError(f"expected {B} seeds, one for each label map; got {len(seeds)}")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (model.latent_channels, H // model.shrinks, W // model.shrinks)

    def noise():
        return torch.stack([torch.randn(shape, generator=draw) for draw in draws]).to(label_map.device, non_blocking=True)
    modulations = model.unet.modulations(label_map)
    if inference.guidance != 1:
        without = model.unet.modulations(label_map, torch.zeros(B, dtype=torch.bool, device=label_map.device))

    def predict(z, t):
        t = torch.full((B,), t, device=z.device)
        predicted = model.unet(z, t, modulations).float()
        if inference.guidance != 1:  # eps(nothing) + s (eps(m) - eps(nothing))
            nothing = model.unet(z, t, without).float()
            predicted = nothing + inference.guidance * (predicted - nothing)
        return predicted

    if inference.from_noise:
        return model.decode(denoise(predict, noise(), STEPS, noise, inference.ddim_steps, show)).clamp(-1, 1)
    for k, T in enumerate(inference.start):                                               # K rounds of refinement
        if k == 0:
            z_0 = model.encode(reference)                                                 # (B, c, h, w)
        elif inference.colour_transfer:
            # what leaves the gamut is cut, as in any picture that is written
            z_0 = model.encode(colour_transfer(image, reference).clamp(-1, 1).float())    # (IIDM Eq. 6)
        else:
            z_0 = model.encode(image)
        z_T = add_noise(z_0, ALPHA_BAR[T], noise())                                       # (IIDM Eq. 1)
        image = model.decode(denoise(predict, z_T, T, noise, inference.ddim_steps, show)).clamp(-1, 1)
    return image


def add_inference_options(parser):
    """The options of Algorithm 2 for sample.py and evaluate.py; inference_of reads them."""
    group = parser.add_argument_group("IIDM's inference (Algorithm 2; only for checkpoints of --model iidm)")
    group.add_argument("--start", metavar="T", help=f"noise level from which the reference is denoised, 1 to {STEPS}; or "
                       f"one for each round: 600,640,400; default: {START}")
    group.add_argument("--rounds", type=int, metavar="K", help=f"of refinement; 1 is I2I in Table 2; default: {ROUNDS}")
    group.add_argument("--colour-transfer", choices=("on", "off"), help="between the rounds; default: on")
    group.add_argument("--from-noise", action="store_true", help="the plain diffusion model (DM in Table 2), without "
                       "a reference")
    group.add_argument("--ddim-steps", type=int, metavar="N", help="N steps of DDIM a round instead of every step of "
                       "IIDM Eq. 5; default: 0, that")
    group.add_argument("--guidance", type=float, metavar="S", help="classifier-free guidance, for models trained with "
                       "--mask-dropout; default: 1, none")
    group.add_argument("--ensemble", type=Path, metavar="EMA_FILE", help="a second checkpoint of the same run, to average "
                       "with (IIDM Eq. 7)")


def inference_options(args):
    """The names of those of add_inference_options that were given."""
    return [name for name in ("start", "rounds", "colour_transfer", "from_noise", "ddim_steps", "guidance", "ensemble")
            if getattr(args, name) is not None and getattr(args, name) is not False]


def inference_of(args):
    """Inference of add_inference_options' options. Raises ValueError for values out of range."""
    if args.from_noise and {"start", "rounds", "colour_transfer"} & set(inference_options(args)):
        raise ValueError("--from-noise has one round from t = 1000; leave --start, --rounds and --colour-transfer out")
    try:
        start = tuple(int(T) for T in (args.start or str(START)).split(","))
    except ValueError:
        raise ValueError(f"--start {args.start}: expected a number from 1 to {STEPS}, or one for each round: 600,640,400") \
            from None
    rounds = args.rounds if args.rounds is not None else ROUNDS if len(start) == 1 else len(start)
    if any(not 1 <= T <= STEPS for T in start):
        raise ValueError(f"--start {args.start}: the schedule has t = 1 to {STEPS}; T is {START} in the paper")
    if not 1 <= rounds <= 100:
        raise ValueError(f"--rounds {args.rounds}: expected 1 to 100")
    if len(start) not in (1, rounds):
        raise ValueError(f"--rounds {args.rounds}, but --start {args.start} has {len(start)} numbers; give one for all rounds, or "
                         f"one for each")
    ddim_steps, guidance = args.ddim_steps or 0, 1.0 if args.guidance is None else args.guidance
    most = STEPS if args.from_noise else min(start)
    if not 0 <= ddim_steps <= most:
        raise ValueError(f"--ddim-steps {ddim_steps}: expected 0 to {most}, for there are no more steps from there")
    if not 0 <= guidance <= 100:
        raise ValueError(f"--guidance {guidance}: expected 0 to 100")
    return Inference(start * rounds if len(start) == 1 else start, args.from_noise, args.colour_transfer != "off",
                     ddim_steps, guidance)


# --------------------------------------------------------------------------------------------- training

# PAPER: no batch size, length, optimiser. / HERE: the released code's: AdamW 1e-4 without decay, 266,000 steps, EMA
# 0.9999; 32 images for its 30. / WHY: 32 can be dealt to eight ranks.
PAPER = dict(image_size="256", steps=266_000, batch_size=32, lr=1e-4, lr_decay_steps=[0, 0], clip_grad=0.0,
             ema_decay=0.9999, autoencoder_steps=50_000, autoencoder_lr=1e-4, log_every=50, picture_every=5000,
             save_every=1000, ema_every=10_000, workers=min(8, os.cpu_count() or 1))
PAPER_NETWORKS = dict()  # the defaults of IIDM
TOY = dict(PAPER, image_size="64", steps=5000, batch_size=8, lr=1e-3, lr_decay_steps=[3000, 5000], ema_decay=0.995,
           autoencoder_steps=2000, autoencoder_lr=4e-4, workers=1, picture_every=500, save_every=200, ema_every=1000)
TOY_NETWORKS = dict(autoencoder_channels=16, autoencoder_multipliers=(1, 2, 4), autoencoder_blocks=1, latent_channels=8,
                    channels=64, multipliers=(1, 2, 2), blocks=1, attention_strides=(2, 4), head_channels=32, hidden=32)
PRESETS = {"paper": (PAPER, PAPER_NETWORKS), "toy": (TOY, TOY_NETWORKS)}
# The rows of IIDM's Table 2: options of sample.py and evaluate.py, over one training.
TABLE_2 = {
    "iidm-table2-dm": "--from-noise",
    "iidm-table2-i2i": "--rounds 1",
    "iidm-table2-rf": "--colour-transfer off",
    "iidm-table2-ct": "",
    "iidm-table2-me": "--ensemble",
}
STRIP_DDIM_STEPS = 25  # of the pictures on the way


def parse_options(argv):
    """argv of train.py --model iidm -> argparse.Namespace. Raises InputError."""
    from data import InputError
    from train import (add_data_options, add_machine_and_output_options, add_optimisation_options, check_ranges)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--dataset", default="toy")
    first.add_argument("--preset")
    first.add_argument("--autoencoder", default="self")
    known, _ = first.parse_known_args(argv)
    preset = known.preset or ("toy" if known.dataset == "toy" else "paper")
    if preset not in PRESETS:
        raise InputError(f"--preset {preset} is unknown; choose from {', '.join(PRESETS)}")
    defaults = dict(PRESETS[preset][0], preset=preset, output_dir=f"runs/{known.dataset}_iidm")
    if known.dataset == "cityscapes":
        defaults["image_size"] = "256x512"
    if known.autoencoder != "self":
        defaults["autoencoder_steps"] = 0
    defaults["steps"] += defaults["autoencoder_steps"]
    defaults["lr_decay_steps"] = [step and step + defaults["autoencoder_steps"] for step in defaults["lr_decay_steps"]]
    parser = argparse.ArgumentParser(
        description="Train IIDM: its autoencoder, then its denoising U-Net. Run the same command again to resume.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Defaults shown are those of the --dataset and --preset on this command line.")
    add_data_options(parser)
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=("iidm",), default="iidm")
    group.add_argument("--preset", choices=PRESETS, help="sizes of the networks and every default below")
    group.add_argument("--autoencoder", metavar="FILE", default="self", help="self trains one here first; or a FILE: an "
                       "ema_*.pt of another run of --model iidm, or the state dict of the public VQ-f4 weights")
    group.add_argument("--autoencoder-steps", type=int, help="how many of --steps train the autoencoder")
    group.add_argument("--autoencoder-lr", type=float, help="its learning rate, which falls to a tenth over its last 40 %%")
    group.add_argument("--mask-dropout", type=float, default=0.0, metavar="P", help="leave a picture's label map out with "
                       "this probability, for --guidance of sample.py; the released code: 0.2")
    group = add_optimisation_options(parser, "optimisation")
    group.add_argument("--sampling", choices=("rare-class", "uniform"), default="uniform", help="of training images")
    add_machine_and_output_options(parser)
    parser.set_defaults(**defaults, offsets="off")
    args = parser.parse_args(argv)
    check_ranges(args, (("autoencoder_steps",), 0, 10 ** 9), (("autoencoder_lr",), 1e-12, 1e9), (("mask_dropout",), 0, 0.999))
    if args.autoencoder == "self" and not 0 < args.autoencoder_steps < args.steps:
        raise InputError(f"--autoencoder-steps {args.autoencoder_steps}: expected 1 or more, and less than --steps "
                         f"{args.steps}, of which they are the first; or give --autoencoder FILE")
    if args.autoencoder != "self" and args.autoencoder_steps:
        raise InputError(f"--autoencoder-steps {args.autoencoder_steps}: --autoencoder {args.autoencoder} is trained "
                         f"already; give 0, or --autoencoder self")
    return args


def build_model(args, num_classes):
    """-> (IIDM, its options). Raises InputError for a file of --autoencoder that does not fit."""
    from data import InputError
    from evaluate import fit
    options, state = dict(num_classes=num_classes, **PRESETS[args.preset][1]), None
    if args.autoencoder != "self":
        if not Path(args.autoencoder).is_file():
            raise InputError(f"--autoencoder {args.autoencoder}: not there; expected self, or a file")
        try:
            state = torch.load(args.autoencoder, map_location="cpu", weights_only=True)
            if "networks" in state or state.get("architecture", "iidm") != "iidm":
                raise ValueError
            if state.get("architecture") == "iidm":
                options.update({key: state["generator"][key] for key in (
                    "autoencoder_channels", "autoencoder_multipliers", "autoencoder_blocks", "latent_channels", "codes")
                    if key in state["generator"]})
                state = {key.removeprefix("autoencoder."): t for key, t in state["ema"].items() if key.startswith("autoencoder.")}
            else:
                options.update(autoencoder_channels=AUTOENCODER_CHANNELS, autoencoder_multipliers=AUTOENCODER_MULTIPLIERS,
                               autoencoder_blocks=AUTOENCODER_BLOCKS, latent_channels=LATENT_CHANNELS)
                state = {key.removeprefix("first_stage_model."): t for key, t in state.get("state_dict", state).items()}
                state = {key: t for key, t in state.items() if not key.startswith("loss.")}  # of its training
                options["codes"] = len(state.get("quantize.embedding.weight", ()))
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            raise InputError(f"--autoencoder {args.autoencoder}: cannot be read as weights ({type(error).__name__}); expected "
                             f"an ema_*.pt of --model iidm, or the state dict of VQ-f4, saved anew with torch.save(torch.load("
                             f"'model.ckpt', weights_only=False)['state_dict'], FILE)") from None
    torch.manual_seed(args.seed)
    model = IIDM(**options)
    if state is not None:
        fit(model.autoencoder, state, "the state dict of VQ-f4 (128 channels x 1, 2, 4, two blocks)", "--autoencoder",
            args.autoencoder)
    return model, options


@torch.no_grad()
def latent_deviation(model, pictures, world):
    """The standard deviation of E's latents over batches of pictures (B, 3, H, W) on every rank: a float."""
    sums = torch.zeros(3, dtype=torch.float64)
    for image in pictures:
        z = model.autoencoder.encode(image).double()
        sums += torch.stack([z.new_tensor(z.numel()), z.sum(), z.square().sum()]).cpu()
    if world > 1:
        dist.all_reduce(sums)
    n, total, squares = sums.tolist()
    return math.sqrt(squares / n - (total / n) ** 2)


@torch.no_grad()
def strip_columns(model, dataset, training, rows, denoises, device):
    """What to look at: the autoencoder alone at first, then pictures from references (training pictures) and from noise."""
    from data import colour_labels
    samples = [dataset[i * len(dataset) // rows] for i in range(rows)]
    real = torch.stack([s["image"] for s in samples]).to(device).float() / 127.5 - 1                   # (B, 3, H, W)
    label_map = torch.stack([s["label_map"] for s in samples])
    columns = {"label map": colour_labels(label_map, dataset.palette), "real": to_pixels(real),
               "D(E(real))": to_pixels(model.decode(model.encode(real)))}
    if denoises:
        reference = torch.stack([training[i * len(training) // rows]["image"] for i in range(rows)])
        reference = reference.to(device).float() / 127.5 - 1                                           # (B, 3, H, W)
        columns["reference"] = to_pixels(reference)
        for title, inference in (("I2I", Inference(start=(START,), ddim_steps=STRIP_DDIM_STEPS)),
                                 ("IIDM", Inference(ddim_steps=STRIP_DDIM_STEPS)),
                                 ("DM", Inference(from_noise=True, ddim_steps=STRIP_DDIM_STEPS))):
            columns[title] = to_pixels(generate(model, label_map.to(device).long(), reference, range(rows), inference))
    return columns


def train(args):
    """The loop of train.py --model iidm, on every rank: --autoencoder-steps of E and D, then Algorithm 1."""
    from torch.utils.data import DataLoader

    from data import InputError, RareClassBatches, draw_page
    from evaluate import sha256_of
    from train import (EMA_BATCHES, STRIP_ROWS, StopOnSignals, add, average_gradients, batches_of, check_finite,
                       check_identity, clip, finish, keep_steps_up_to, load_checkpoint, lr_factor, open_run, own_group,
                       save_atomically, setup_distributed, split_batch, update_ema, write_metrics)
    device, rank, world = setup_distributed(args.device)
    say = print if rank == 0 else (lambda *_, **__: None)
    (H, W), networks = args.image_size, PRESETS[args.preset][1]
    per_rank, micro, accumulation = split_batch(args, world, step_of=4 * 2 ** (
        len(networks.get("multipliers", MULTIPLIERS)) - 1))
    dataset, validation, run, probabilities = open_run(args, rank, world)
    model, options = build_model(args, len(dataset.classes))
    model = model.to(device, memory_format=torch.channels_last)
    ema = copy.deepcopy(model).requires_grad_(False)
    if args.compile:
        for net in (model.unet, model.autoencoder.encoder, model.autoencoder.decoder):  # modulations() stays eager
            net.compile()
    optimisers = [torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0, fused=True)
                  for net, lr in ((model.autoencoder, args.autoencoder_lr), (model.unet, args.lr))]

    # ---- resume
    done, latest = 0, run / "latest.pt"
    identity = {"model": "iidm", "dataset": args.dataset, "preset": args.preset, "classes": list(dataset.classes),
                "autoencoder_steps": args.autoencoder_steps, "mask_dropout": args.mask_dropout,
                "autoencoder": "self" if args.autoencoder == "self" else sha256_of(args.autoencoder)}
    if latest.is_file():
        state = load_checkpoint(latest)
        check_identity(state, identity, latest, args, say)
        model.load_state_dict(state["networks"])
        ema.load_state_dict(state["ema"])
        for optimiser, of_optimiser in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(of_optimiser)
        done = state["step"]
    if rank == 0:
        (run / "options.json").write_text(json.dumps(vars(args), indent=1))
        keep_steps_up_to(done, run / "metrics.jsonl")

    def loader_of(first_step, last_step):
        sampler = RareClassBatches(probabilities, args.batch_size, first_step, last_step, args.seed, rank, world)
        loader = DataLoader(dataset, batch_sampler=sampler, num_workers=args.workers, pin_memory=device.type == "cuda",
                            persistent_workers=args.workers > 0, worker_init_fn=own_group)
        for batch in batches_of(loader):  # real (B, 3, H, W) in [-1, 1], label_map (B, H, W)
            yield ((batch["image"].to(device, non_blocking=True).float() / 127.5 - 1).contiguous(
                memory_format=torch.channels_last), batch["label_map"].to(device, non_blocking=True).long())

    def settle_autoencoder():
        """The averaged E and D are those of all further steps; the scale of their latents is measured."""
        model.autoencoder.load_state_dict(ema.autoencoder.state_dict())
        deviation = latent_deviation(model, (image for image, _ in loader_of(0, EMA_BATCHES)), world)
        for net in (model, ema):
            net.latent_scale.fill_(1 / deviation)
        say(f"step {args.autoencoder_steps}: the latents' standard deviation of {deviation:.3f} is scaled to 1", flush=True)

    def save(step):
        if rank == 0:
            save_atomically({"step": step, "identity": identity, "options": vars(args), "networks": model.state_dict(),
                             "ema": ema.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}, latest)

    def save_ema(step):
        if rank == 0:
            save_atomically({"step": step, "architecture": "iidm", "generator": options, "ema": ema.state_dict(),
                             "dataset": args.dataset, "image_size": [H, W], "classes": list(dataset.classes),
                             "palette": dataset.palette.tolist(), "unknown": dataset.unknown,
                             "mask_dropout": args.mask_dropout, "run": {**identity, "seed": args.seed}},
                            run / f"ema_{step:07d}.pt")

    banner(say, args, device, world, micro, accumulation, model, run, done, len(dataset))
    if done >= args.steps:
        say(f"step {done} is reached already; --steps {2 * done} would go on (see --lr-decay-steps)")
        return finish(say, run, world)
    stopping, log, busy_since = StopOnSignals(world), [], time.time()
    progress = tqdm(total=args.steps, initial=done, desc="training", dynamic_ncols=True, disable=None if rank == 0 else True)
    batches, parts = loader_of(done, args.steps), [slice(i, i + micro) for i in range(0, per_rank, micro)]
    latent = (model.latent_channels, H // model.shrinks, W // model.shrinks)
    nets = {"E, D": model.autoencoder, "eps_theta": model.unet}
    for step in range(done + 1, args.steps + 1):
        try:
            if step == args.autoencoder_steps + 1:
                settle_autoencoder()
            real, label_map = next(batches)
        except InputError:  # a file that cannot be read: keep what was learnt
            if rank == 0 and step > done + 1:
                check_finite(log, step - 1, nets, latest)
                save(step - 1)
            raise
        of_autoencoder = step <= args.autoencoder_steps
        net, optimiser = (model.autoencoder, optimisers[0]) if of_autoencoder else (model.unet, optimisers[1])
        A = args.autoencoder_steps
        lr = args.autoencoder_lr * lr_factor(step, int(0.6 * A), A) if of_autoencoder else \
            args.lr * lr_factor(step, *args.lr_decay_steps)
        optimiser.param_groups[0]["lr"] = lr
        # draws of the whole global batch, on every rank alike; this rank takes its share
        draw, mine = torch.Generator().manual_seed(args.seed * 1_000_003 + step), slice(rank * per_rank, (rank + 1) * per_rank)
        t = torch.randint(1, STEPS + 1, (args.batch_size,), generator=draw)[mine].to(device, non_blocking=True)
        noise = torch.randn(args.batch_size, *latent, generator=draw)[mine].to(device, non_blocking=True)
        known = (torch.rand(args.batch_size, generator=draw)[mine] >= args.mask_dropout).to(device, non_blocking=True)
        values = {}
        optimiser.zero_grad()
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                if of_autoencoder:
                    # PAPER: E and D are "pretrained", no loss. / HERE: where no weights are given, the mean of |x - D(E(x))|.
                    # WHY: it needs no further network; VQ-f4's perceptual and adversarial terms make sharper textures.
                    loss = (real[part] - model.autoencoder.decode(model.autoencoder.encode(real[part])).float()).abs().mean()
                else:
                    loss = denoising_loss(model, real[part], label_map[part], t[part], noise[part],
                                          known[part] if args.mask_dropout else None)
            (loss / accumulation).backward()
            add(values, {"loss": loss}, accumulation)
        parameters = list(net.parameters())
        average_gradients(parameters, world)
        logs_now = step % args.log_every == 0 or step in (args.steps, args.autoencoder_steps)
        norm = clip(parameters, args.clip_grad, logs_now)
        optimiser.step()
        mean_net, since = (ema.autoencoder, step) if of_autoencoder else (ema.unet, step - args.autoencoder_steps)
        update_ema(mean_net, net, since, args.ema_decay)

        # ---- once in a while: log, picture, checkpoint
        log.append(values)
        progress.update()
        stop = stopping.now()
        saves_now, keeps_now, draws_now = (step == args.steps or (every and step % every == 0 and not stop)
                                           for every in (args.save_every, args.ema_every, args.picture_every))
        keeps_now, saves_now = keeps_now and not of_autoencoder, saves_now or stop
        if logs_now or saves_now or keeps_now or draws_now:
            check_finite(log, step, nets, latest)
        if logs_now:
            values["gradient"] = norm
            stage = {"stage": "autoencoder" if of_autoencoder else "unet", "lr": lr}
            write_metrics(log, step, stage, busy_since, args, run, progress, device, rank, world)
            log, busy_since = [], time.time()
        paused = time.time()
        if draws_now and rank == 0:
            rows = min(STRIP_ROWS, len(validation))
            columns = strip_columns(ema.eval(), validation, dataset, rows, not of_autoencoder, device)
            for name in (f"strip_{step:07d}.png", "strip.png"):
                draw_page(columns, run / name)
        if keeps_now:
            save_ema(step)
        if saves_now:  # last, because latest.pt is what says that a step was reached
            save(step)
        busy_since += time.time() - paused  # pictures and checkpoints are not training time
        if stop:
            progress.close()
            say(f"stopped at step {step} and saved; run the same command again to go on")
            break
    progress.close()
    finish(say, run, world)


def banner(say, args, device, world, micro, accumulation, model, run, done, images):
    from train import machine_lines
    say(f"IIDM on {args.dataset}: {images} images, preset {args.preset}, torch {torch.__version__}\n"
        + machine_lines(args, device, world, micro, accumulation) +
        f"steps       {args.steps}, the first {args.autoencoder_steps} of them for the autoencoder "
        f"({args.autoencoder})\n"
        "parameters  " + ", ".join(f"{part} {n:,}" for part, n in parameters_by_part(model).items()) + "\n"
        f"run folder  {run}, {f'resumed at step {done}' if done else 'new'}", flush=True)

