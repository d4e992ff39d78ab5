"""OASIS as a baseline: one pyramid, 3D noise, and a discriminator trained from scratch (OASIS, ICLR 2021).

What DP-SIMS's Tables 1, 4, 6 and 9 and DP-GAN's Table 4(a) compare with. Its losses are those of losses.py with
gamma = 0 and no label smoothing, and LabelMix, which DP-GAN's paper prints as its Eq. 8.

    Generator          label map and noise in every SPADE block, 8x8 ... 256x256
    Discriminator      encoder-decoder (UNet) of residual blocks, C + 1 logits for every pixel
    label_mix_mask     which pixels of a mixture are real: one flip for each image and class
    label_mix_loss     L_LM, the discriminator of a mixture against the mixture of its answers   (DP-GAN Eq. 8)

    here              | shape
    x                 | (B, d_z + C, H, W), noise in front of the one-hot label map
    down[i]           | (B, encoder_widths[i], H / 2^(i+1), W / 2^(i+1))
    up[i]             | (B, decoder_widths[i], ...), from the second-lowest scale up to the full one
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

from generator import PADDING, WIDTHS, Z_DIM, SPADEBlock

ENCODER_WIDTHS = (128, 128, 256, 256, 512, 512)     # DP-GAN's Table 7, the same network
DECODER_WIDTHS = (512, 256, 256, 128, 128, 64)
HIDDEN = 128                                        # of SPADE's own convolution


def initialise(net):
    """Xavier's normal draw with gain 0.02 and biases of 0, as SPADE and OASIS start. -> net"""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            # TRAP: under spectral norm `weight` is computed anew each time, so its source is set
            normed = hasattr(module, "parametrizations")
            nn.init.xavier_normal_(module.parametrizations.weight.original if normed else module.weight, gain=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def concatenate_noise(label_map, z, offsets, num_classes):
    """label_map (B, H, W), z (B, d_z), offsets (B, 2, H, W) or None -> (B, d_z + C (+ 2), H, W): z at every pixel."""
    H, W = label_map.shape[1:]
    classes = torch.arange(num_classes, device=label_map.device)
    one_hot = (label_map[:, None] == classes[:, None, None]).to(z.dtype)      # (B, C, H, W)
    x = [z[:, :, None, None].expand(-1, -1, H, W), one_hot] + ([] if offsets is None else [offsets.to(z.dtype)])
    return torch.cat(x, dim=1).contiguous(memory_format=torch.channels_last)


def check_inputs(G, label_map, z, offsets):
    """Raises ValueError where the arguments of G's forward do not fit."""
    B, H, W = label_map.shape
    if H % G.downsampling or W % G.downsampling:
        raise ValueError(f"label map of {H}x{W}: both sides must be divisible by {G.downsampling}, "
                         f"the downsampling of this generator")
    if (offsets is not None) != (G.offset_channels > 0) or z.shape != (B, G.z_dim):
        raise ValueError(f"expected z of shape ({B}, {G.z_dim}) and {G.offset_channels} offset channels; got z "
                         f"{tuple(z.shape)}, offsets {None if offsets is None else tuple(offsets.shape)}")


class Generator(nn.Module):
    """OASIS's generator; the defaults are the full-size model, 71.1 M parameters for 35 classes.

    num_classes: C. offset_channels: 2 or 0 (OASIS: 0). widths: of the image pyramid, lowest scale first.
    """

    def __init__(self, num_classes, offset_channels=0, widths=WIDTHS, z_dim=Z_DIM, hidden=HIDDEN, padding=PADDING):
        super().__init__()
        self.num_classes, self.offset_channels, self.z_dim = num_classes, offset_channels, z_dim
        scales = len(widths) - 1
        self.downsampling = 2 ** (scales - 1)
        channels = z_dim + num_classes + offset_channels
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1, padding_mode=padding)
        self.blocks = nn.ModuleList(
            SPADEBlock(widths[i], widths[i + 1], channels, padding, hidden) for i in range(scales))
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1, padding_mode=padding)
        initialise(self)

    def forward(self, label_map, z, offsets=None, return_features=False):
        """label_map (B, H, W) int64, z (B, d_z), offsets (B, 2, H, W) or None -> image (B, 3, H, W) in [-1, 1].

        With return_features also the features before the last convolution, (B, widths[-1], H, W). Raises ValueError
        where the shapes do not fit.
        """
        check_inputs(self, label_map, z, offsets)
        x = concatenate_noise(label_map, z, offsets, self.num_classes)        # (B, d_z + C, H, W)
        scales = len(self.blocks)
        small = F.interpolate(x, scale_factor=1 / self.downsampling, mode="nearest")
        y = self.first(small)                                                 # (B, widths[0], H / 2^5, W / 2^5)
        for i, block in enumerate(self.blocks):
            if i > 0:
                y = F.interpolate(y, scale_factor=2, mode="nearest")          # (B, widths[i], 2H', 2W')
            condition = x if i == scales - 1 else F.interpolate(x, size=y.shape[2:], mode="nearest")
            y = block(y, condition)                                           # (B, widths[i + 1], H', W')
        features = F.leaky_relu(y, 0.2)
        image = torch.tanh(self.to_image(features).float())                   # (B, 3, H, W)
        return (image, features) if return_features else image


class Block(nn.Module):
    """Residual block of the discriminator: halves ("down") or doubles ("up") the resolution.

    first: the block that meets the image, which is not rectified and is pooled before its shortcut.
    """

    def __init__(self, in_channels, out_channels, direction, first=False):
        super().__init__()
        self.direction, self.first = direction, first
        self.conv_0 = spectral_norm(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv_1 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.conv_s = spectral_norm(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x):
        """(B, C_in, H, W) -> (B, C_out, H / 2, W / 2) or (B, C_out, 2H, 2W)."""
        y = x if self.first else F.leaky_relu(x, 0.2)
        if self.direction == "up":
            x, y = (F.interpolate(t, scale_factor=2, mode="nearest") for t in (x, y))
        y = self.conv_1(F.leaky_relu(self.conv_0(y), 0.2))
        if self.direction == "down":
            # the mean of a 1x1 convolution is the convolution of the mean, which is cheaper
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return y + (self.conv_s(x) if self.learned_shortcut else x)


class Discriminator(nn.Module):
    """OASIS's discriminator: C + 1 logits for every pixel, the last one "fake". 22.3 M parameters at full size.

    encoder_widths, decoder_widths: of as many scales each, highest and lowest resolution first.
    """

    backbone = None  # nothing is frozen; the training loop asks

    def __init__(self, num_classes, encoder_widths=ENCODER_WIDTHS, decoder_widths=DECODER_WIDTHS):
        super().__init__()
        self.downsampling = 2 ** len(encoder_widths)
        inputs = (3,) + tuple(encoder_widths[:-1])
        self.encoder = nn.ModuleList(
            Block(i, o, "down", first=n == 0) for n, (i, o) in enumerate(zip(inputs, encoder_widths)))
        # each but the lowest decoder block also sees the encoder's output of its resolution
        skips = (0,) + tuple(encoder_widths[-2::-1])
        inputs = (encoder_widths[-1],) + tuple(decoder_widths[:-1])
        self.decoder = nn.ModuleList(Block(i + s, o, "up") for i, s, o in zip(inputs, skips, decoder_widths))
        self.to_logits = nn.Conv2d(decoder_widths[-1], num_classes + 1, 1)
        initialise(self)

    def encode_decode(self, image):
        """image (B, 3, H, W) -> (outputs of the encoder's blocks, outputs of the decoder's blocks). Raises ValueError."""
        if image.shape[2] % self.downsampling or image.shape[3] % self.downsampling:
            raise ValueError(f"image of {image.shape[2]}x{image.shape[3]}: both sides must be divisible by "
                             f"{self.downsampling}, the downsampling of this discriminator")
        down, up = [], []
        for block in self.encoder:
            down.append(block(down[-1] if down else image))                   # (B, ., H / 2^n, W / 2^n)
        for n, block in enumerate(self.decoder):
            up.append(block(torch.cat([up[-1], down[-1 - n]], dim=1) if up else down[-1]))  # (B, ., 2H', 2W')
        return down, up

    def forward(self, image, features=None, return_all=False):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W). return_all: (logits, [], []), as dpgan.py's.

        features is None: it is there so that every discriminator is called alike.
        """
        logits = self.to_logits(self.encode_decode(image)[1][-1])             # (B, C + 1, H, W)
        return (logits, [], []) if return_all else logits


def label_mix_mask(label_map, flips):
    """M of LabelMix: label_map (B, H, W) int64, flips (B, C) bool -> (B, 1, H, W) bool, True where the pixel is real.

    A flip for each image and class, all drawn before. TRAP: OASIS's code relabels in place, class by class, so that
    a class may be flipped twice, and shares its flips over the batch.
    """
    return flips.gather(1, label_map.flatten(1)).view(label_map.shape)[:, None]


def label_mix_loss(mixed_logits, real_logits, fake_logits, mask):
    """L_LM (DP-GAN Eq. 8). logits (B, C + 1, H, W), mask (B, 1, H, W) -> a scalar.

    PAPER: a squared norm. / HERE: the mean of the squares. / WHY: OASIS's code, where lambda_LM is from; a sum would
    grow with the picture.
    """
    # L_LM = || D(LabelMix(x, x^, M)) - LabelMix(D(x), D(x^), M) ||_2^2                      (DP-GAN Eq. 8)
    # with LabelMix(a, b, M) = M a + (1 - M) b
    mixture = torch.where(mask, real_logits.float(), fake_logits.float())
    return (mixed_logits.float() - mixture).square().mean()
