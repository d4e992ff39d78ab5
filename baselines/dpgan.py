"""DP-GAN as a baseline: dual pyramid generator, discriminator with three kinds of supervision (DP-GAN, BMVC 2022).

    Generator                  label pyramid of convolutions beside the SPADE image pyramid      (DP-GAN Eq. 1, 2)
    Discriminator              OASIS's UNet, with patch heads and features to match
    class_weights              alpha_c, inverse class frequency                                  (DP-GAN Eq. 4)
    patch_discriminator_loss   L_ms, a hinge on the scores of the patch heads                    (DP-GAN Eq. 5)
    feature_matching_loss      L_fm                                                              (DP-GAN Eq. 6)
    patch_generator_loss       the second term of L_G                                            (DP-GAN Eq. 7)

The pixel losses, DP-GAN Eq. 3 and the first term of Eq. 7, are losses.py's with gamma = 0 and without label smoothing;
LabelMix, Eq. 8, is oasis.py's; train.py adds them up as Eq. 7 and Eq. 9 say.

    paper          | here                       | shape
    s_5 ... s_0    | modulation[0] ... [-1]     | (B, 64, H, W) ... (B, 64, H / 2^5, W / 2^5)
    D_p^i(psi^i)   | scores[i]                  | (B, 1, h, w), one for each patch of the picture
    phi^i          | features[i]                | (B, C^i, H^i, W^i)
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from baselines.oasis import DECODER_WIDTHS, ENCODER_WIDTHS, check_inputs, concatenate_noise, initialise
from baselines.oasis import Discriminator as UNet
from generator import LABEL_CHANNELS, PADDING, STEM_CHANNELS, WIDTHS, Z_DIM, SPADEBlock

HEAD_CHANNELS = 64
# --patch, the rows of Table 4(b): (side, block counted from its end). PAPER: "after the fourth and sixth block" of the
# encoder; of the decoder not said. / HERE: the blocks of the same resolutions. / WHY: the same patches.
PATCH_LEVELS = {"none": (), "encoder": (("encoder", 3), ("encoder", 1)), "decoder": (("decoder", 5), ("decoder", 6)),
                "both": (("encoder", 3), ("encoder", 1), ("decoder", 5), ("decoder", 6))}


class Generator(nn.Module):
    """DP-GAN's dual pyramid generator (Sec. 3.1, supplement Tables 6 and 8); 69.5 M parameters for 35 classes.

    num_classes: C. offset_channels: 2 or 0 (DP-GAN: 0). widths: of the image pyramid, lowest scale first.
    concatenate_last: s_0 beside s_i at every scale; False is "w/o cat" of the supplement's Table 3.
    PAPER: Table 8 has five blocks, and s_5 is not used. / HERE: six, 8x8 to 256x256. / WHY: its released code, whose
    parameter count is the one of Table 5.
    """

    def __init__(self, num_classes, offset_channels=0, widths=WIDTHS, stem_channels=STEM_CHANNELS,
                 label_channels=LABEL_CHANNELS, z_dim=Z_DIM, padding=PADDING, concatenate_last=True):
        super().__init__()
        self.num_classes, self.offset_channels, self.z_dim = num_classes, offset_channels, z_dim
        self.concatenate_last, scales = concatenate_last, len(widths) - 1
        self.downsampling = 2 ** (scales - 1)
        channels = z_dim + num_classes + offset_channels

        def conv_block(i, o, stride):
            return nn.Sequential(nn.Conv2d(i, o, 3, stride=stride, padding=1, padding_mode=padding),
                                 nn.BatchNorm2d(o), nn.ReLU())
        self.stem = conv_block(channels, stem_channels, 1)
        self.label_pyramid = nn.ModuleList(
            conv_block(label_channels if i else stem_channels, label_channels, 2 if i else 1) for i in range(scales))
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1, padding_mode=padding)
        condition_channels = (2 if concatenate_last else 1) * label_channels
        self.blocks = nn.ModuleList(
            SPADEBlock(widths[i], widths[i + 1], condition_channels, padding) for i in range(scales))
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1, padding_mode=padding)
        initialise(self)

    def forward(self, label_map, z, offsets=None, return_features=False):
        """label_map (B, H, W) int64, z (B, d_z), offsets (B, 2, H, W) or None -> image (B, 3, H, W) in [-1, 1].

        With return_features also the features before the last convolution, (B, widths[-1], H, W). Raises ValueError
        where the shapes do not fit.
        """
        check_inputs(self, label_map, z, offsets)
        x = concatenate_noise(label_map, z, offsets, self.num_classes)        # (B, d_z + C, H, W)
        h, modulation = self.stem(x), []                                      # (B, 32, H, W)
        for block in self.label_pyramid:
            h = block(h)                                                      # (B, 64, H / 2^i, W / 2^i)
            modulation.append(h)
        s_0 = modulation[-1]
        y = self.first(F.interpolate(x, size=s_0.shape[2:], mode="nearest"))  # (B, widths[0], H / 2^5, W / 2^5)
        for i, block in enumerate(self.blocks):
            if i > 0:
                y = F.interpolate(y, scale_factor=2, mode="nearest")          # (B, widths[i], 2H', 2W')
            s_i = modulation[-1 - i]
            # gamma^i, beta^i = Conv(s_i (+) Up(s_0)), the convolutions being SPADE's        (DP-GAN Eq. 2)
            # gamma^i (h - mu) / sigma + beta^i, in SPADE                                    (DP-GAN Eq. 1)
            # PAPER: for i > 0. / HERE: also at i = 0. / WHY: its released code; all blocks are then alike.
            if self.concatenate_last:
                s_i = torch.cat([s_i, F.interpolate(s_0, size=s_i.shape[2:], mode="bilinear", align_corners=False)], dim=1)
            y = block(y, s_i)                                                 # (B, widths[i + 1], H', W')
        # PAPER: Table 8 ends in "Conv2D, LeakyRelu, TanH". / HERE: LeakyReLU, convolution, tanh. / WHY: a tanh of a
        # LeakyReLU could hardly be negative; its code.
        features = F.leaky_relu(y, 0.2)
        image = torch.tanh(self.to_image(features).float())                   # (B, 3, H, W)
        return (image, features) if return_features else image


class PatchHead(nn.Sequential):
    """D_p^i: features (B, C_in, h, w) -> scores (B, 1, h / 2, w / 2).

    PAPER: "blocks with convolutional layer, ReLU, and a batch normalization layer", no number. / HERE: one that halves,
    three more, and a convolution to the score; the first without normalisation. / WHY: the sizes of its code.
    """

    def __init__(self, in_channels, channels):
        layers = [nn.Conv2d(in_channels, channels, 3, stride=2, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(channels)]
        super().__init__(*layers, nn.Conv2d(channels, 1, 3, padding=1))


class Discriminator(nn.Module):
    """The scale-enhancement discriminator (Sec. 3.2, supplement Table 7); 22.9 M parameters at full size.

    patch: a key of PATCH_LEVELS, where the patch heads sit (Table 4b). matched: "none", "decoder", "encoder" or "both",
    whose blocks' outputs are matched, all but the first of each (Table 4c).
    """

    backbone = None

    def __init__(self, num_classes, encoder_widths=ENCODER_WIDTHS, decoder_widths=DECODER_WIDTHS, patch="encoder",
                 matched="decoder", head_channels=HEAD_CHANNELS):
        super().__init__()
        self.unet = UNet(num_classes, encoder_widths, decoder_widths)
        widths = {"encoder": encoder_widths, "decoder": decoder_widths}
        # small networks have fewer blocks: none is left out, the lowest stays the lowest
        self.levels = [(side, max(-block, -len(widths[side]))) for side, block in PATCH_LEVELS[patch]]
        self.heads = nn.ModuleList(initialise(PatchHead(widths[side][block], head_channels)) for side, block in self.levels)
        self.matched = {"none": (), "both": ("encoder", "decoder")}.get(matched, (matched,))

    def forward(self, image, features=None, return_all=False):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W), the last one "fake".

        return_all: (logits, [scores of the patch heads], [features to match]). features is None: see oasis.py.
        """
        outputs = dict(zip(("encoder", "decoder"), self.unet.encode_decode(image)))
        logits = self.unet.to_logits(outputs["decoder"][-1])                  # (B, C + 1, H, W)
        if not return_all:
            return logits
        scores = [head(outputs[side][block]) for head, (side, block) in zip(self.heads, self.levels)]  # (B, 1, h, w)
        return logits, scores, [f for side in self.matched for f in outputs[side][1:]]


def class_weights(label_counts, unknown=None):
    """alpha_c (DP-GAN Eq. 4): label_counts (C,), the pixels n_c of each class over the whole batch and all ranks -> (C,).

    The unknown class and absent ones get 0.
    """
    n = label_counts.float()
    # alpha_c = E_l[ H W / sum_xy l_xyc ]                                                    (DP-GAN Eq. 4)
    # PAPER: the mean of a ratio, infinite for a class that one picture lacks. / HERE: the ratio of the means, B H W / n_c
    # of a batch, without OASIS's 1 / K. / WHY: finite; the K is in the code, not in the equation.
    alpha = torch.where(n > 0, n.sum() / n.clamp_min(1), 0)
    if unknown is not None:
        alpha[unknown] = 0
    return alpha


def patch_discriminator_loss(real_scores, fake_scores):
    """L_ms (DP-GAN Eq. 5), averaged over the heads: real patches beyond 1, generated ones below -1. A scalar.

    scores [(B, 1, h, w), ...]. TRAP: the released code adds loss.item(), which trains no head.
    """
    # L_ms^i = - E min(-1 + D_p^i(psi^i(x)), 0) - E min(-1 - D_p^i(psi^i(G)), 0)             (DP-GAN Eq. 5)
    losses = [-(-1 + real.float()).clamp_max(0).mean() - (-1 - fake.float()).clamp_max(0).mean()
              for real, fake in zip(real_scores, fake_scores)]
    return sum(losses) / len(losses)


def feature_matching_loss(real_features, fake_features):
    """L_fm (DP-GAN Eq. 6), averaged over the blocks: mean squared difference. [(B, C, h, w), ...] each -> a scalar."""
    # L_fm^i = E sum_xy || phi^i(x)_xy - phi^i(G)_xy ||_2^2 / (C^i H^i W^i)                  (DP-GAN Eq. 6)
    losses = [(real.detach().float() - fake.float()).square().mean() for real, fake in zip(real_features, fake_features)]
    return sum(losses) / len(losses)


def patch_generator_loss(fake_scores):
    """The patch term of L_G (DP-GAN Eq. 7), averaged over the heads. [(B, 1, h, w), ...] -> a scalar.

    PAPER: a hinge. / HERE: as printed. / WHY: the equation; the released code has the mean score without a hinge.
    """
    # - 1/L sum_i E min(-1 + D_p^i(psi^i(G)), 0)                                             (DP-GAN Eq. 7)
    losses = [-(-1 + scores.float()).clamp_max(0).mean() for scores in fake_scores]
    return sum(losses) / len(losses)
