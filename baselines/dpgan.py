"""DP-GAN, the baseline of Table 1 and the base of DP-SIMS.

Li, Cheng and Gall, "Dual Pyramid Generative Adversarial Networks for Semantic Image Synthesis", BMVC 2022. It is
OASIS with a second pyramid in the generator, and with supervision of patches and of features in the discriminator.

Read from the bottom of the file upwards:

    patch_generator_loss      second term of L_G                                     (DP-GAN Eq. 7)
    feature_matching_loss     L_fm                                                   (DP-GAN Eq. 6)
    patch_discriminator_loss  L_ms                                                   (DP-GAN Eq. 5)
    class_weights             alpha_c as printed, --class-weights inverse            (DP-GAN Eq. 4)
    Discriminator             oasis.Discriminator with a patch head on some of its blocks (Fig. 3, Table 7)
      patch_head              D_p^i
    Generator                 Fig. 2: label pyramid below (Table 6), image pyramid above (Table 8)
      conv_block              one scale of the label pyramid
      SPADEBlock              generator.py's, whose SPADE is DP-GAN Eq. 1

Elsewhere: L_pixel = - E sum_c alpha_c sum_xy l_xyc log D(x)_xyc - E sum_xy log D(G)_xy,N+1 (DP-GAN Eq. 3) and the first
term of L_G, - E sum_c alpha_c sum_xy l_xyc log D(G)_xyc (DP-GAN Eq. 7), are losses.discriminator_loss and
losses.generator_loss with gamma 0 and smoothing 0; L_LM (DP-GAN Eq. 8) is oasis.label_mix_loss; baselines/train.py
adds them up (DP-GAN Eq. 9).

    paper                 | here                | shape
    l                     | label_map           | (B, H, W) integers 0..C-1; N of the paper is C here
    z, (z, l)             | z, x                | (B, d_z), (B, d_z + C (+ 2), H, W)
    s_i (Tables), alpha^i | alpha[i]            | (B, 64, H / 2^(5-i), W / 2^(5-i)), i = 0 the lowest scale
    up_i (Table 8)        | y                   | (B, widths[i], H / 2^(5-i), W / 2^(5-i))
    psi^i, phi^i          | blocks[side][i - 1] | (B, C^i, H^i, W^i), side "encoder" or "decoder"
    D_p^i(psi^i(.))       | scores              | [(B, 1, h, w), ...], one for each head
    alpha_c (Eq. 3, 4)    | class_weights       | (C,)

Every loss computes in float32, also under autocast.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

import losses
from baselines.oasis import DECODER_WIDTHS, ENCODER_WIDTHS, initialise, mean_square, noise_and_labels
from baselines.oasis import Discriminator as UNet
from generator import LABEL_CHANNELS, PADDING, STEM_CHANNELS, WIDTHS, Z_DIM, SPADEBlock

# The rows of Table 4(b): which blocks have a patch head, as (side, index). "After the fourth and sixth block" of six
# is written from the end, so that it holds for fewer levels.
# PAPER: rows with L_ms on the decoder, not after which blocks. / HERE: its first two, 8x8 and 16x16.
# WHY: "applied to feature maps of lower resolution"; the encoder's two are 16x16 and 4x4.
PATCH_LEVELS = {"none": (), "encoder": (("encoder", -3), ("encoder", -1)), "decoder": (("decoder", 0), ("decoder", 1))}
PATCH_LEVELS["both"] = PATCH_LEVELS["encoder"] + PATCH_LEVELS["decoder"]
# The rows of Table 4(c): where features are matched, "after all blocks except for the first one".
MATCHED = {"none": (), "encoder": ("encoder",), "decoder": ("decoder",), "both": ("encoder", "decoder")}


def conv_block(in_channels, out_channels, stride, padding):
    """One scale of the label pyramid: (B, C_in, H, W) -> (B, C_out, H/stride, W/stride)."""
    # PAPER: "a convolutional layer, ReLU, and a batch normalization layer" (Sec. 3.1), "Conv2d-BatchNorm2d-ReLU"
    # (Table 6). / HERE: as in Table 6. / WHY: the text lists, the table orders; its code.
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, padding_mode=padding),
                         nn.BatchNorm2d(out_channels), nn.ReLU())


class Generator(nn.Module):
    """DP-GAN's G(z, l): two pyramids (Sec. 3.1, Fig. 2). The defaults are the full-size model.

    num_classes, offset_channels, widths, padding: as in oasis.Generator.
    stem_channels, label_channels: of the label pyramid, its first block and all others.
    concatenate_last: False is "w/o cat" of the supplement's Table 3, gamma and beta from alpha^i alone.
    """

    def __init__(self, num_classes, offset_channels=0, widths=WIDTHS, stem_channels=STEM_CHANNELS,
                 label_channels=LABEL_CHANNELS, z_dim=Z_DIM, padding=PADDING, concatenate_last=True):
        super().__init__()
        self.num_classes, self.offset_channels, self.z_dim = num_classes, offset_channels, z_dim
        self.concatenate_last = concatenate_last
        # PAPER: Table 8 has five blocks, and no use for s_5 of Table 6. / HERE: six, 8x8 to 256x256, for s_0 ... s_5.
        # WHY: its code, and 69.5 M of its Table 5.
        scales = len(widths) - 1
        self.downsampling = 2 ** (scales - 1)
        in_channels = z_dim + num_classes + offset_channels
        self.label_pyramid = nn.ModuleList(
            [conv_block(in_channels, stem_channels, 1, padding), conv_block(stem_channels, label_channels, 1, padding)]
            + [conv_block(label_channels, label_channels, 2, padding) for _ in range(scales - 1)])
        self.first = nn.Conv2d(in_channels, widths[0], 3, padding=1, padding_mode=padding)
        condition_channels = 2 * label_channels if concatenate_last else label_channels
        self.blocks = nn.ModuleList(
            SPADEBlock(widths[i], widths[i + 1], condition_channels, padding) for i in range(scales))
        self.to_image = nn.Conv2d(widths[-1], 3, 3, padding=1, padding_mode=padding)
        initialise(self)

    def forward(self, label_map, z, offsets=None, return_features=False, regions=None):
        """label_map (B, H, W) int64, z (B, d_z), offsets (B, 2, H, W) or None -> image (B, 3, H, W) in [-1, 1].

        With return_features also G^f (B, widths[-1], H, W); with regions (B, H, W) int64 of 0..R-1, which is ours, z is
        (B, R, d_z), one for each region. Raises ValueError where the shapes do not fit.
        """
        x = noise_and_labels(self, label_map, z, offsets, regions)        # (B, d_z + C (+ 2), H, W)
        s, alpha = x, []
        for block in self.label_pyramid:
            s = block(s)                                                  # (B, 64, H', W'), full resolution first
            alpha.insert(0, s)                                            # "an inverse index": alpha[0] is the lowest
        # PAPER: interp of Table 8, Up of Eq. 2 and the growth of the picture have no kind. / HERE: nearest, bilinear,
        # nearest x2. / WHY: its code.
        y = self.first(F.interpolate(x, size=alpha[0].shape[2:], mode="nearest"))  # up_0
        for i, block in enumerate(self.blocks):
            if i > 0:
                y = F.interpolate(y, scale_factor=2, mode="nearest").to(y.dtype)  # (B, widths[i], 2H', 2W')
            condition = alpha[i]                                          # (B, 64, H', W')
            if self.concatenate_last:
                # gamma^i = Conv(alpha^i (+) Up(alpha^0)), beta^i = Conv(alpha^i (+) Up(alpha^0))  (DP-GAN Eq. 2)
                # PAPER: "for i > 0". / HERE: for i = 0, too. / WHY: its code, and 69.5 M of its Table 5.
                up = F.interpolate(alpha[0], size=alpha[i].shape[2:], mode="bilinear", align_corners=False)
                condition = torch.cat([alpha[i], up.to(alpha[i].dtype)], dim=1)  # (B, 64 + 64, H', W')
            # gamma^i (h^i - mu^i) / sigma^i + beta^i in every SPADE of the block               (DP-GAN Eq. 1)
            y = block(y, condition)                                       # (B, widths[i + 1], H', W')
        # PAPER: "Conv2D, LeakyRelu, TanH" (Table 8). / HERE: LeakyReLU, convolution, tanh. / WHY: its code; the
        # printed order would treat dark and bright pixels unlike.
        features = F.leaky_relu(y, 0.2)                                   # G^f (B, widths[-1], H, W)
        image = torch.tanh(self.to_image(features).float())               # x^  (B, 3, H, W)
        return (image, features) if return_features else image


def patch_head(in_channels, channels):
    """D_p^i: psi^i (B, C^i, H^i, W^i) -> a score for every patch (B, 1, H^i/2, W^i/2)."""
    # PAPER: "blocks with convolutional layer, ReLU, and a batch normalization layer", no numbers. / HERE: three blocks
    # of 64, norm before ReLU, behind a convolution of stride 2. / WHY: the numbers of its code (which has LeakyReLU),
    # the order of its Table 6. With the norm last, every batch would have nearly the same mean score.
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride=2, padding=1), nn.ReLU(),
        *(layer for _ in range(3) for layer in
          (nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())),
        nn.Conv2d(channels, 1, 3, padding=1))


class Discriminator(nn.Module):
    """The scale-enhancement discriminator (Sec. 3.2, Fig. 3, Table 7). Defaults are full size.

    encoder_widths, decoder_widths: as in oasis.Discriminator, three levels or more.
    patch: a key of PATCH_LEVELS, the blocks that have a patch head.
    matched: a key of MATCHED, the blocks whose features are matched.
    head_channels: of the patch heads. They have batch norm: in training, a batch needs two images or more where the
        map of a head is a single pixel.
    """

    backbone = None  # nothing here is frozen; the training loop asks

    def __init__(self, num_classes, encoder_widths=ENCODER_WIDTHS, decoder_widths=DECODER_WIDTHS, patch="encoder",
                 matched="decoder", head_channels=64):
        super().__init__()
        self.patch_levels, self.matched = PATCH_LEVELS[patch], MATCHED[matched]
        self.unet = UNet(num_classes, encoder_widths, decoder_widths)
        widths = {"encoder": encoder_widths, "decoder": decoder_widths}
        self.heads = nn.ModuleList(patch_head(widths[side][i], head_channels) for side, i in self.patch_levels)
        initialise(self.heads)

    def compile(self):
        """--compile: the losses call everything(), not the module."""
        self.everything = torch.compile(self.everything)

    def features(self, image):
        """None: there is no backbone."""

    def forward(self, image, features=None):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W); index C is "fake". features: of features()."""
        return self.unet(image)

    def everything(self, image):
        """image (B, 3, H, W) -> logits, [patch scores (B, 1, h, w), ...], [features to match (B, C^i, H^i, W^i), ...].

        Real and generated images go through in separate calls. Raises ValueError where a side is not divisible by
        2^levels.
        """
        blocks = dict(zip(("encoder", "decoder"), self.unet.encode_decode(image)))
        logits = self.unet.to_logits(blocks["decoder"][-1])               # (B, C + 1, H, W)
        scores = [head(blocks[side][i]) for head, (side, i) in zip(self.heads, self.patch_levels)]
        return logits, scores, [phi for side in self.matched for phi in blocks[side][1:]]


def class_weights(label_counts, unknown=None):
    """alpha_c (DP-GAN Eq. 4): B*H*W / n_c. The unknown class and absent ones get 0. -> (C,) float32

    label_counts (C,): n_c, the pixels of each class in the whole batch, over all ranks. losses.class_weights divides
    this by K, the number of known classes present.
    """
    # alpha_c = E_l[ H W / sum_xy l_xyc ]                                                   (DP-GAN Eq. 4)
    # PAPER: a mean over images, infinite where one of them lacks the class. / HERE: pixels of the batch over pixels of
    # the class. / WHY: OASIS's estimate.
    alpha = losses.class_weights(label_counts, unknown)                   # divided by K
    return alpha * (alpha > 0).sum()


def mean_over_layers(terms):
    """1/L sum_i of scalars, 0 where there are no layers (the first rows of Table 4(b) and (c))."""
    return torch.stack(terms).mean() if terms else torch.zeros(())


def patch_discriminator_loss(real_scores, fake_scores):
    """L_ms (DP-GAN Eq. 5), "averaged over all layers": lists of (B, 1, h, w) -> a scalar. E is over patches, too."""
    # L_ms^i = - E_x[ min(-1 + D_p^i(psi^i(x)), 0) ]                                        (DP-GAN Eq. 5)
    #          - E_(z,l)[ min(-1 - D_p^i(psi^i(G(z, l))), 0) ]
    return mean_over_layers([-(-1 + real.float()).clamp_max(0).mean() - (-1 - fake.float()).clamp_max(0).mean()
                             for real, fake in zip(real_scores, fake_scores)])


def feature_matching_loss(real_features, fake_features):
    """L_fm (DP-GAN Eq. 6): lists of (B, C^i, H^i, W^i) -> a scalar. It trains G, so the real side is detached."""
    # L_fm^i = E[ sum_xy || phi^i(x)_xy - phi^i(G(z, l))_xy ||_2^2 / (C^i H^i W^i) ]        (DP-GAN Eq. 6)
    # PAPER: "averaged over all layers". / HERE: so. / WHY: said here because its code sums the five.
    return mean_over_layers([mean_square(real.detach().float() - fake.float())
                             for real, fake in zip(real_features, fake_features)])


def patch_generator_loss(fake_scores):
    """Second term of L_G (DP-GAN Eq. 7): a list of (B, 1, h, w) -> a scalar."""
    # - 1/L sum_i E_(z,l)[ min(-1 + D_p^i(psi^i(G(z, l))), 0) ]                             (DP-GAN Eq. 7)
    # PAPER: a hinge for G, too. / HERE: so. / WHY: said here because its code has -mean(score), without a gradient.
    return mean_over_layers([-(-1 + fake.float()).clamp_max(0).mean() for fake in fake_scores])
