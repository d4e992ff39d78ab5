"""The discriminator of DP-SIMS: a frozen backbone under a trained UNet decoder (Sec. 3.1, Fig. 2).

Read from the bottom of the file upwards:

    Discriminator           C + 1 logits for every pixel: the C classes, and "fake" as the last one
      Backbone              F_theta, frozen, torchvision's; features at strides 4, 8, 16, 32
      condition_features    sigmoid, then batch normalisation with batch statistics
      ResidualBlock         of the decoder (five of them) and of the full-resolution path (two)

    image --+--> ImageNet mean/std --> F_theta --> F_1 (1/4)  F_2 (1/8)  F_3 (1/16)  F_4 (1/32)
            |                                        |          |          |          |
            |                                     condition  condition  condition  condition
            |                                        v          v          v          |
            |    logits <- 1x1 <-+--- 1/1 <- 1/2 <- 1/4 <----- 1/8 <----- 1/16 <------+
            +--> two residual blocks (full resolution, trained)         UNet decoder (trained)

    paper        | here                | shape
    x or g       | image               | (B, 3, H, W) in [-1, 1], H and W divisible by 32
    F_l          | features[l - 1]     | (B, C_l, H / 2^(l+1), W / 2^(l+1))
    F~_l         | conditioned[l - 1]  | the same
    log-odds of p| logits              | (B, C + 1, H, W)

Gradients flow through the backbone to the image, never to its parameters.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torch.nn.utils.parametrizations import spectral_norm

# Channels of the four stages; strides are 4, 8, 16, 32 for all of them. Asserted when one is built.
BACKBONES = {
    "convnext_large": (192, 384, 768, 1536),
    "convnext_base": (128, 256, 512, 1024),
    "convnext_tiny": (96, 192, 384, 768),
    "resnet50": (256, 512, 1024, 2048),
    "resnet18": (64, 128, 256, 512),
    "swin_b": (128, 256, 512, 1024),
}
STRIDES = (4, 8, 16, 32)
# PAPER: "residual blocks with skip connections", no widths. / HERE: 512, 256, 256, 128, 64 from 1/16
# to 1/1 and 64 on the full-resolution path. / WHY: mirrors DP-GAN's Table 7, its base.
DECODER_WIDTHS = (512, 256, 256, 128, 64)
FULL_RESOLUTION_WIDTH = 64
CLASSIFIERS = ("fc.", "classifier.", "head.", "norm.")  # what follows the last stage
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """The frozen feature backbone F_theta (Sec. 3.1): image (B, 3, H, W) in [-1, 1] -> [F_1, ..., F_4].

    weights: "imagenet" (torchvision's default weights), "random" (drawn from seed), or the path of a
    file with the state dict of torchvision's model. Raises ValueError for a name or file that does not
    fit, and OSError or URLError where the weights cannot be read or downloaded.
    """

    def __init__(self, name, weights="imagenet", seed=0):
        super().__init__()
        if name not in BACKBONES:
            raise ValueError(f"backbone '{name}' is not one of {', '.join(BACKBONES)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # "random" is the same network again after a restart
            model = torchvision.models.get_model(name, weights="DEFAULT" if weights == "imagenet" else None)
        if weights not in ("imagenet", "random"):
            try:  # a classifier's last layer is not used and may be of any size
                state = torch.load(weights, map_location="cpu", weights_only=True)
                missing, unexpected = model.load_state_dict(
                    {k: v for k, v in state.items() if not k.startswith(CLASSIFIERS)}, strict=False)
                missing = [k for k in missing if not k.startswith(CLASSIFIERS)]
                if missing or unexpected:
                    raise ValueError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
            except OSError:  # not there
                raise
            except Exception as error:  # torch raises many kinds for a file that is something else
                raise ValueError(f"{weights}: not a state dict of torchvision's {name} ({type(error).__name__}: "
                                 f"{' '.join(str(error).split())[:160]})") from None
        # PAPER: "levels l = 1, ..., L", not which. / HERE: the raw output of all four stages.
        # WHY: "multi-scale feature representations"; these are the strides a UNet wants.
        if name.startswith("resnet"):
            stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
            stages = [nn.Sequential(stem, model.layer1), model.layer2, model.layer3, model.layer4]
        else:  # ConvNeXt and Swin: features = stem, stage, downsampling, stage, downsampling, ...
            stages = [model.features[2 * i:2 * i + 2] for i in range(4)]
        self.stages = nn.ModuleList(stages)
        self.channels_come_last = name.startswith("swin")
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

        with torch.no_grad():
            probe = self(torch.zeros(1, 3, 64, 64))
        found = [(f.shape[1], 64 // f.shape[2]) for f in probe]
        assert found == list(zip(BACKBONES[name], STRIDES)), f"{name}: (channels, stride) are {found}"

    def train(self, mode=True):
        return super().train(False)  # frozen means its batch norm and stochastic depth too

    def forward(self, image):
        # PAPER: silent on the input. / HERE: ImageNet's mean and std, no resizing. / WHY: these
        # weights expect them, and the decoder must align with the image.
        x = ((image + 1) / 2 - self.mean) / self.std
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x.permute(0, 3, 1, 2) if self.channels_come_last else x)  # (B, C_l, H_l, W_l)
        return features


def condition_features(feature, norm):
    """F~_l = (F'_l - mu_l) / sigma_l with F'_l = sigmoid(F_l) (Sec. 3.1, "Feature conditioning").

    feature (B, C_l, H_l, W_l) -> the same shape. norm is a batch norm without affine parameters and
    without running statistics, so mu_l and sigma_l are those of this batch, in evaluation too.
    """
    return norm(torch.sigmoid(feature.float()))


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
    """

    def __init__(self, num_classes, backbone="convnext_large", backbone_weights="imagenet",
                 decoder_widths=DECODER_WIDTHS, full_resolution_width=FULL_RESOLUTION_WIDTH,
                 spectral=True, seed=0):
        super().__init__()
        self.backbone = Backbone(backbone, backbone_weights, seed)
        channels = BACKBONES[backbone]
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(c, affine=False, track_running_stats=False) for c in channels)
        # the five decoder blocks end at 1/16, 1/8, 1/4, 1/2, 1/1; the first three meet F_3, F_2, F_1
        skips = (channels[2], channels[1], channels[0], 0, 0)
        inputs = (channels[3],) + tuple(decoder_widths[:-1])
        self.decoder = nn.ModuleList(
            ResidualBlock(inputs[i] + skips[i], decoder_widths[i], spectral) for i in range(5))
        self.full_resolution = nn.Sequential(
            ResidualBlock(3, full_resolution_width, spectral, first=True),
            ResidualBlock(full_resolution_width, full_resolution_width, spectral))
        self.to_logits = nn.Conv2d(decoder_widths[-1] + full_resolution_width, num_classes + 1, 1)

    def forward(self, image, features=None):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, C + 1, H, W); index C is "fake".

        features: self.backbone(image), where the caller has them already. Real and generated images
        go through in separate calls: batch statistics of a mixture would give each away.
        """
        if features is None:
            features = self.backbone(image)
        conditioned = [condition_features(f, norm) for f, norm in zip(features, self.norms)]
        skips = conditioned[2::-1] + [None, None]
        y = conditioned[3]                                            # (B, C_4, H/32, W/32)
        for block, skip in zip(self.decoder, skips):
            y = F.interpolate(y, scale_factor=2, mode="nearest")      # (B, ., 2H', 2W')
            y = block(y if skip is None else torch.cat([y, skip], dim=1))
        y = torch.cat([y, self.full_resolution(image)], dim=1)        # (B, 64 + 64, H, W)
        return self.to_logits(F.leaky_relu(y, 0.2))                   # (B, C + 1, H, W)


if __name__ == "__main__":
    for name in BACKBONES:
        D = Discriminator(151, backbone=name, backbone_weights="random")
        trained = sum(p.numel() for p in D.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in D.backbone.parameters())
        print(f"{name:<15} frozen {frozen:>11,}  trained {trained:>10,}  features {BACKBONES[name]}")
