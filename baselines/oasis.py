"""OASIS, the baseline of Table 1 and the half of DP-GAN that DP-GAN did not change.

Sushko et al., "You Only Need Adversarial Supervision for Semantic Image Synthesis", ICLR 2021. Here it is built from
what DP-GAN's paper prints of it: its discriminator is DP-GAN's Table 7, its regulariser DP-GAN Eq. 8, its size
71.1 M (Table 5). What no table gives is as in OASIS's public code, and docs/departures.md says where.

Read from the bottom of the file upwards:

    label_mix_loss      L_LM, consistency under LabelMix (DP-GAN Eq. 8)
      label_mix         M * x + (1 - M) * x^
      label_mix_mask    M, one coin for each image and class
    Discriminator       UNet with C + 1 logits for every pixel: the C classes, and "fake" as the last one
      ResidualBlock     discriminator.py's
    Generator           SPADE blocks, each conditioned on noise and labels at its own size
      SPADEBlock        generator.py's, with a hidden convolution of 128 in every SPADE
    noise_and_labels    the input of both generators, this one and DP-GAN's
    initialise          the start of every convolution, in all four networks

    paper         | here        | shape
    l             | label_map   | (B, H, W) integers 0..C-1; one-hot only here, on the device
                  | offsets     | (B, 2, H, W), instance offsets of DP-SIMS, optional; OASIS has none
    z             | z           | (B, d_z), an argument: nothing in this file draws noise
    z_y           | x           | (B, d_z + C (+ 2), H, W), noise in front
    x, x^         | real, fake  | (B, 3, H, W) in [-1, 1]
    D_logits      | logits      | (B, C + 1, H, W), before the softmax; index C is "fake" (OASIS's code: index 0)
    M             | mask        | (B, 1, H, W) bool, True = real

OASIS's other losses are losses.discriminator_loss and generator_loss with gamma 0, smoothing 0 and class_weights.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrize

from discriminator import ResidualBlock
from generator import PADDING, WIDTHS, Z_DIM, SPADEBlock, one_hot_labels, z_at_pixels

HIDDEN = 128                                    # of every SPADE; 71.1 M parameters follow from it
ENCODER_WIDTHS = (128, 128, 256, 256, 512, 512)  # DP-GAN's Table 7: 1/2 ... 1/64
DECODER_WIDTHS = (512, 256, 256, 128, 128, 64)   # 1/32 ... 1/1


def initialise(net):
    """Xavier normal of gain 0.02 for every convolution of net, biases 0. Call it in training mode.

    PAPER: silent. / HERE: this, in both networks of OASIS and of DP-GAN. / WHY: OASIS's code.
    """
    for name, module in net.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        spectral = parametrize.is_parametrized(module, "weight")
        # TRAP: under spectral norm .weight is computed, and what is written into it is lost
        weight = module.parametrizations.weight.original if spectral else module.weight
        with torch.no_grad():
            # gamma and beta are two convolutions that run as one (generator.SPADE): each has its own fan-out
            for part in weight.chunk(2 if name.endswith("to_gamma_beta") else 1):
                nn.init.xavier_normal_(part, gain=0.02)
            if module.bias is not None:
                module.bias.zero_()
            for _ in range(15 if spectral else 0):
                module.weight  # each reading is a power iteration: its vectors belonged to the old weight


def noise_and_labels(G, label_map, z, offsets, regions=None):
    """The input of generator G: noise, one-hot labels and offsets, (B, d_z + C (+ 2), H, W), in z's dtype.

    Raises ValueError where the shapes do not fit.
    """
    labels = one_hot_labels(G, label_map, z, offsets, regions)            # (B, C (+ 2), H, W)
    # PAPER: "a 3D noise tensor", "sampled from a unit Gaussian" (DP-GAN, Table 6). / HERE: one vector for each image,
    # the same at every pixel. / WHY: the code of both papers.
    noise = z_at_pixels(z, regions, labels.shape[2:])                     # (B, d_z, H, W)
    return torch.cat([noise, labels], dim=1).contiguous(memory_format=torch.channels_last)  # (B, d_z + C (+ 2), H, W)


class Generator(nn.Module):
    """OASIS's G(z, l): a pyramid of SPADE blocks over noise and labels. The defaults are the full-size model.

    num_classes: C, the labels 0..C-1, the unknown one included.
    offset_channels: 2 where instance offsets are given, else 0.
    widths: channels of the image pyramid, lowest scale first; there are len(widths) - 1 scales, and H
        and W must be divisible by 2^(scales - 1).
    hidden: channels of the convolution that every SPADE puts before gamma and beta.
    padding: of the 3x3 convolutions, "zeros" or "reflect".
    """

    def __init__(self, num_classes, offset_channels=0, widths=WIDTHS, z_dim=Z_DIM, hidden=HIDDEN, padding=PADDING):
        super().__init__()
        self.num_classes, self.offset_channels, self.z_dim = num_classes, offset_channels, z_dim
        scales = len(widths) - 1
        self.downsampling = 2 ** (scales - 1)
        in_channels = z_dim + num_classes + offset_channels
        self.first = nn.Conv2d(in_channels, widths[0], 3, padding=1, padding_mode=padding)
        self.blocks = nn.ModuleList(
            SPADEBlock(widths[i], widths[i + 1], in_channels, padding, hidden) for i in range(scales))
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1, padding_mode=padding)
        initialise(self)

    def forward(self, label_map, z, offsets=None, return_features=False, regions=None):
        """label_map (B, H, W) int64, z (B, d_z), offsets (B, 2, H, W) or None -> image (B, 3, H, W) in [-1, 1].

        With return_features also G^f (B, widths[-1], H, W); with regions (B, H, W) int64 of 0..R-1, which is ours, z is
        (B, R, d_z), one for each region. Raises ValueError where the shapes do not fit.
        """
        x = noise_and_labels(self, label_map, z, offsets, regions)        # (B, d_z + C (+ 2), H, W)
        y = self.first(F.interpolate(x, scale_factor=1 / self.downsampling, mode="nearest"))
        for i, block in enumerate(self.blocks):
            if i > 0:
                y = F.interpolate(y, scale_factor=2, mode="nearest").to(y.dtype)  # (B, widths[i], 2H', 2W')
            y = block(y, F.interpolate(x, size=y.shape[2:], mode="nearest"))  # (B, widths[i + 1], H', W')
        features = F.leaky_relu(y, 0.2)                                   # G^f (B, widths[-1], H, W)
        image = torch.tanh(self.to_image(features).float())               # x^  (B, 3, H, W)
        return (image, features) if return_features else image


class Discriminator(nn.Module):
    """OASIS's UNet: one of C classes or "fake" for every pixel (DP-GAN, Table 7). Defaults are full size.

    encoder_widths: channels from 1/2 of the image downwards; their number is that of the levels, and H and W must be
        divisible by 2^levels.
    decoder_widths: as many, upwards to the full resolution.
    """

    backbone = None  # nothing here is frozen; the training loop asks

    def __init__(self, num_classes, encoder_widths=ENCODER_WIDTHS, decoder_widths=DECODER_WIDTHS):
        super().__init__()
        self.downsampling = 2 ** len(encoder_widths)
        # PAPER: "a U-Net architecture built from ResNet blocks", widths only. / HERE: blocks of two 3x3 convolutions
        # under spectral norm, LeakyReLU first, no other norm; averaged 2x2 after a block, nearest x2 before one.
        # WHY: OASIS's code; its order of pooling and 1x1 shortcut gives the same numbers.
        inputs = (3, *encoder_widths[:-1])
        self.encoder = nn.ModuleList(
            ResidualBlock(inputs[i], encoder_widths[i], spectral=True, first=i == 0) for i in range(len(inputs)))
        # the second decoder block and all after it also read the encoder's map of their size
        inputs, skips = (encoder_widths[-1], *decoder_widths[:-1]), (0, *encoder_widths[-2::-1])
        self.decoder = nn.ModuleList(
            ResidualBlock(inputs[i] + skips[i], decoder_widths[i], spectral=True) for i in range(len(inputs)))
        self.to_logits = nn.Conv2d(decoder_widths[-1], num_classes + 1, 1)
        initialise(self)

    def encode_decode(self, image):
        """image (B, 3, H, W) -> ([down_1 at 1/2, down_2 at 1/4, ...], [up_1, ..., up_n at 1/1]), Table 7's names.

        Raises ValueError where a side is not divisible by 2^levels.
        """
        H, W = image.shape[2:]
        if H % self.downsampling or W % self.downsampling:
            raise ValueError(f"image of {H}x{W}: both sides must be divisible by {self.downsampling}, "
                             f"the downsampling of this discriminator")
        y, down, up = image, [], []
        for block in self.encoder:
            y = F.avg_pool2d(block(y), 2)                                 # (B, encoder_widths[i], H'/2, W'/2)
            down.append(y)
        for i, block in enumerate(self.decoder):
            y = y if i == 0 else torch.cat([y, down[-1 - i]], dim=1)      # cat(up_i, down_(n-i))
            y = F.interpolate(y, scale_factor=2, mode="nearest").to(y.dtype)  # as in discriminator.py
            y = block(y)                                                  # (B, decoder_widths[i], 2H', 2W')
            up.append(y)
        return down, up

    def features(self, image):
        """None: there is no backbone."""

    def forward(self, image, features=None):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W); index C is "fake". features: of features().

        Raises ValueError where a side is not divisible by 2^levels.
        """
        return self.to_logits(self.encode_decode(image)[1][-1])


def label_mix_mask(label_map, flips):
    """M of DP-GAN Eq. 8: label_map (B, H, W) int64, flips (B, C) bool -> (B, 1, H, W) bool, True = real.

    PAPER: "M is a binary mask", not how it is drawn. / HERE: flips[b, c] decides for all of class c in image b, and
    the caller draws every flip before. / WHY: OASIS's idea; its code shares the flips between the images of a batch,
    and flips some classes twice.
    """
    return flips.gather(1, label_map.flatten(1)).view_as(label_map)[:, None]  # (B, 1, H, W)


def label_mix(real, fake, mask):
    """LabelMix(x, x^, M) = M * x + (1 - M) * x^ for pictures or logits (B, K, H, W), mask (B, 1, H, W) bool."""
    return torch.where(mask, real, fake)


def mean_square(x):
    """x.square().mean(), a scalar; its gradient lies in memory as x does, which that of .mean() does not."""
    return x.square().sum() / x.numel()


def label_mix_loss(mixed_logits, real_logits, fake_logits, mask):
    """L_LM (DP-GAN Eq. 8): D of the mixed picture must be the mixture of what D says. A scalar, in float32.

    Logits (B, C + 1, H, W) each, mask (B, 1, H, W) bool; mixed_logits = D(label_mix(real, fake, mask)).
    """
    difference = mixed_logits.float() - label_mix(real_logits.float(), fake_logits.float(), mask)
    # L_LM = || D_logits(LabelMix(x, x^, M)) - LabelMix(D_logits(x), D_logits(x^), M) ||_2^2  (DP-GAN Eq. 8)
    # PAPER: a squared norm, which is a sum. / HERE: the mean over images, outputs and pixels. / WHY: OASIS's code, to
    # which lambda_LM of 5 and 10 belong.
    return mean_square(difference)
