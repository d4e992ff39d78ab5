"""Every score of the papers by the field's protocol, in one command (DP-SIMS Sec. 4.1-4.3, IIDM Sec. 3.1).

    python evaluate.py --checkpoint runs/toy/ema_0002000.pt
    python evaluate.py --checkpoint EMA --data-path DIR --segmenter hf:facebook/mask2former-swin-large-ade-semantic
    python evaluate.py --fake DIR --dataset folder --data-path DIR     pictures of anyone's model, NAME as the label map
    python evaluate.py --checkpoint IIDM_EMA --reference train         a diffusion model, in the style of references
    python evaluate.py --fake DIR --real DIR                           two folders of pictures, FID alone
    torchrun --nproc_per_node 8 evaluate.py --checkpoint EMA ...       the same numbers, sooner

    metric      what                                                                      table of DP-SIMS
    fid         Frechet distance of Inception features, one picture a map against the real ones       1, 2, 3
    miou        a segmenter's IoU with the label maps, beside the same on the real pictures           1, 2, 3
    diversity   LPIPS between pictures of one map, and the difference of their pixels                      9
    latency     one picture, 50 runs; pictures a second, memory, parameters, operations                    4
    iidm        mask accuracy M, style similarity S, total T                            IIDM's Table 1, 2

    shapes: B batch, H x W picture, C classes of the dataset, K classes that are scored, D features (2048)
    pictures are (B, H, W, 3) uint8 arrays outside the networks and (B, 3, H, W) uint8 tensors on their way in

The output folder holds eval.json (every number with its protocol), eval.png (label map, real picture, four seeds) and
the pictures, from which a run that was killed goes on. A picture is a function of its map and its seed alone, and
batches are dealt to the ranks from one list, so that the number of ranks changes nothing.
"""
import argparse
import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageDraw
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import inception
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.segmentation import LRASPP
from tqdm import tqdm

from baselines import iidm
from data import (DATASETS, IMAGE_ENDINGS, InputError, colour_labels, listed, open_dataset, open_picture, parse_size,
                  toy_scene)
from generator import to_pixels, z_of_seed
from sample import check_inference, generate, generate_iidm, load_generator, open_references
from train import leave_ranks, peak_memory, rank_0_first, save_atomically, setup_distributed

METRICS = ("fid", "miou", "diversity", "latency", "iidm")
# PAPER: z of the samples not said. / HERE: of map i and seed s from one generator seeded with s * 1,000,003 + i.
# WHY: any batch, rank or restart draws the same. TRAP: torch keeps 32 bits of a seed, so a shift by 2^32 does nothing.
SEED_STRIDE, MOST_SEEDS = 1_000_003, 4000
PAGE_ROWS, PAGE_SEEDS = 4, 4         # best maps and as many worst ones; pictures of each
PAGE_TITLES = ("label map", "real", *(f"seed {s}" for s in range(PAGE_SEEDS)))
INCEPTION_URL = ("https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
                 "pt_inception-2015-12-05-6726825d.pth")
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
ALEXNET_URL = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url
LPIPS_URL = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth"
LATENCY_RUNS, LATENCY_WARM_UP = 50, 5     # Table 4: "averaged over 50 different runs"
DENOISING_RUNS = 5                        # of IIDM, whose pictures take hundreds of passes, and in turn with a GAN's
CALIBRATION_SCENES = 32                   # of --inception-weights random
SEGMENTER_STEPS, SEGMENTER_BATCH, SEGMENTER_LR, SEGMENTER_SAMPLES = 1200, 8, 1e-2, 2000  # --segmenter train


# ------------------------------------------------------------------------------------- batches and ranks

def batches(count, batch_size, rank, world):
    """This rank's share of the batches of range(count): lists of indices. What is in a batch depends on no rank."""
    return [list(range(first, min(first + batch_size, count)))
            for first in range(rank * batch_size, count, world * batch_size)]


def read_ahead(read, shares, description, show):
    """(batch, [read(i) for i in batch]) for each batch; the next one is read while this one is used."""
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
        ahead = [pool.submit(read, i) for batch in shares[:1] for i in batch]
        for n, batch in enumerate(tqdm(shares, desc=description, disable=None if show else True, dynamic_ncols=True)):
            items = [future.result() for future in ahead]
            ahead = [pool.submit(read, i) for later in shares[n + 1:n + 2] for i in later]
            yield batch, items


def sum_over_ranks(t, world):
    """A tensor's sum over the ranks, on the CPU."""
    t = t.cpu()
    if world > 1:
        dist.all_reduce(t)
    return t


def on_all_cores(build):
    """build() with as many threads as there are cores, whatever the number of ranks: fewer would round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    try:
        return build()
    finally:
        torch.set_num_threads(threads)


def sha256_of(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def to_tensor(pictures, device):
    """[(H, W, 3) uint8 array, ...] -> (B, 3, H, W) uint8 on the device. Raises InputError for mixed sizes."""
    return torch.from_numpy(np.stack(pictures)).to(device, non_blocking=True).permute(0, 3, 1, 2)


def load_weights(weights, url, name, flag, instead):
    """--*-weights: "download" or a file -> (state dict, sha256). Raises InputError with the remedy."""
    try:
        if weights == "download":
            file = Path(torch.hub.get_dir()) / "checkpoints" / name
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(file), progress=True)
        else:
            file = Path(weights)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise ValueError("not a state dict")
        return state, sha256_of(file)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if weights == "download":
            raise InputError(f"{url} cannot be downloaded ({reason}); fetch it where there is a network and give it as "
                             f"{flag} FILE; or {instead}") from None
        raise InputError(f"{flag} {weights}: cannot be read as a state dict ({type(error).__name__}); expected the "
                         f"file of {url}; or {instead}") from None


def fit(net, state, what, flag, weights):
    """net.load_state_dict(state). Raises InputError for the weights of another network."""
    mine = net.state_dict()
    missing, strange = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]  # unknown to files of old torch versions
    shapes = [k for k in mine.keys() & state.keys() if mine[k].shape != state[k].shape]
    if missing or strange or shapes:
        some = (missing[:1] and f"it has no {missing[0]}") or (strange[:1] and f"it has {strange[0]}") or (
            f"{shapes[0]} is {tuple(state[shapes[0]].shape)}, not {tuple(mine[shapes[0]].shape)}")
        raise InputError(f"{flag} {weights}: the weights of another network ({some}; {len(missing)} missing, "
                         f"{len(strange)} unknown, {len(shapes)} of another shape); expected {what}")
    net.load_state_dict(state, strict=False)


# -------------------------------------------------------------------------------------------- pictures

def conditions(samples):
    """Samples of a dataset -> label_map (B, H, W), offsets (B, 2, H, W) or None."""
    label_map = torch.stack([s["label_map"] for s in samples])                               # (B, H, W)
    offsets = torch.stack([s["offsets"] for s in samples]) if "offsets" in samples[0] else None
    return label_map, offsets


def noise(batch, seed, z_dim):
    """(B, d_z): z of the maps of a batch under one seed."""
    return torch.stack([z_of_seed(seed * SEED_STRIDE + i, z_dim) for i in batch])


def file_of(folder, seed, name):
    return folder / f"seed{seed:03d}" / f"{name}.png"


def save_picture(picture, file):
    """A whole PNG or none, whenever the process is killed."""
    temporary = file.with_name(file.name + ".tmp")
    Image.fromarray(picture).save(temporary, format="PNG", compress_level=1)
    os.replace(temporary, file)


def claim_pictures(folder, manifest, force):
    """Make `folder` the home of the pictures that `manifest` describes. Raises InputError where others live there."""
    file = folder / "manifest.json"
    try:
        if force:
            shutil.rmtree(folder, ignore_errors=True)
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            differ = [key for key in manifest if found.get(key) != manifest[key]]
            if differ:
                raise InputError(f"{folder}: holds pictures of another {', '.join(differ)}; choose another "
                                 f"--output-dir, or --force to throw them away")
            return
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder}: holds files, but no manifest.json that says which checkpoint they are of; "
                             f"choose another --output-dir, or --force to throw them away")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        os.replace(temporary, file)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be used for the pictures ({error}); choose another --output-dir") from None


def write_pictures(draw, dataset, folder, seeds, count, batch_size, rank, world, only=None):
    """Pictures of the first `count` maps (or of the batches with the maps `only`) under each seed, where they are not
    there yet: folder/seedNNN/NAME.png. draw(batch, its samples, seed): the pictures of a batch."""
    for seed in seeds:
        (folder / f"seed{seed:03d}").mkdir(parents=True, exist_ok=True)
    # dealt before looking what is there: another rank may be writing already
    shares = [batch for batch in batches(count, batch_size, rank, world)
              if (only is None or set(only) & set(batch))
              and not all(file_of(folder, seed, dataset.names[i]).is_file() for i in batch for seed in seeds)]
    with ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
        for batch, samples in read_ahead(dataset.__getitem__, shares, "pictures", rank == 0):
            writing = []
            for seed in seeds:
                files = [file_of(folder, seed, dataset.names[i]) for i in batch]
                if all(file.is_file() for file in files):
                    continue
                # TRAP: the whole batch again though one picture is missing: a smaller batch rounds otherwise
                pictures = draw(batch, samples, seed)                                         # (B, H, W, 3)
                writing += [pool.submit(save_picture, picture, file) for picture, file in zip(pictures, files)
                            if not file.is_file()]
            for written in writing:
                written.result()
    if world > 1:
        dist.barrier()


def read_picture(file, size=None, resize=None):
    """(H, W, 3) uint8. size: the (H, W) it must have; resize: the (H, W) to bring it to, bicubic as data.py does it."""
    image = open_picture(file)
    if image.mode[0] in "IF":
        raise InputError(f"{file}: a picture of mode {image.mode}; expected 8 bits a channel, convert it")
    image = image.convert("RGB")
    if resize is not None and (image.height, image.width) != tuple(resize):
        image = image.resize((resize[1], resize[0]), Image.BICUBIC)
    if size is not None and (image.height, image.width) != tuple(size):
        raise InputError(f"{file} is {image.height}x{image.width} (height x width), expected {size[0]}x{size[1]}; "
                         f"bring all pictures to one size")
    return np.array(image)


def open_pictures(folder, flag, resize=None):
    """--fake or --real DIR -> ({name: file}, (H, W) of them all). Raises InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: no such folder; expected a folder of pictures")
    files = listed(folder, IMAGE_ENDINGS)
    if len(files) < 2:
        raise InputError(f"{flag} {folder}: {len(files)} pictures ({', '.join(IMAGE_ENDINGS)}) there; expected 2 or "
                         f"more, a covariance needs them")
    sizes = {}
    for file in files.values():
        try:
            with Image.open(file) as image:  # the header alone
                sizes.setdefault((image.height, image.width), file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{file}: cannot be read as a picture ({error}); replace or remove it") from None
    if resize is None and len(sizes) > 1:
        (a, file_a), (b, file_b) = list(sizes.items())[:2]
        raise InputError(f"{flag} {folder}: pictures of {len(sizes)} sizes (height x width), {file_a.name} "
                         f"{a[0]}x{a[1]} and {file_b.name} {b[0]}x{b[1]}; bring all to one size"
                         + (", or give --image-size to have the real ones resized" if flag == "--real" else ""))
    return files, tuple(resize or next(iter(sizes)))


# ------------------------------------------------------------------------------------------------- FID

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
    """The Inception v3 of the TensorFlow graph of 2015-12-05, in which FID is defined: torchvision's with other pooling
    and 1008 outputs, as the pytorch-fid package ports it; its weights fit this state dict."""
    net = inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    net.Mixed_5b, net.Mixed_5c, net.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
    net.Mixed_6b, net.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
    net.Mixed_6d, net.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
    net.Mixed_7b = InceptionE(1280, average)
    net.Mixed_7c = InceptionE(2048, lambda x: F.max_pool2d(x, 3, stride=1, padding=1))
    return net


class InceptionFeatures(nn.Module):
    """Pictures (B, 3, H, W) uint8 -> (B, 2048) float32, the globally averaged features before the classifier.

    Resized to 299x299, bilinear without antialiasing, and scaled to [-1, 1], as the 2015 graph does it.
    """

    width = 2048

    def __init__(self, net):
        super().__init__()
        net.fc = nn.Identity()
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, pictures):
        x = F.interpolate(pictures.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
        return self.net((2 * x - 1).contiguous(memory_format=torch.channels_last))            # (B, 2048)


def random_inception():
    """inception_2015 without any training: He's initialisation from seed 0, batch norms calibrated on toy scenes, since
    through 90 uncalibrated layers every picture would give nearly the same features."""
    net = inception_2015()
    draw = torch.Generator().manual_seed(0)
    for p in net.parameters():
        if p.dim() == 4:
            p.data.normal_(0, (2 / p[0].numel()) ** 0.5, generator=draw)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = None  # the plain mean
    features = InceptionFeatures(net)
    net.train()
    with torch.no_grad():
        scenes = [toy_scene(1, i, 64, 64)[0] for i in range(CALIBRATION_SCENES)]
        on_all_cores(lambda: features(to_tensor(scenes, "cpu")))
    net.eval()
    return features


def load_inception(weights, device):
    """--inception-weights -> (features: a network, name of the distance, where the weights come from, their key).

    weights: download, a FILE, torchvision, random. Only the weights of 2015-12-05 give what is called FID, by their
    sha256. Raises InputError.
    """
    with torch.random.fork_rng(devices=[]):  # training goes on with its own random numbers
        if weights == "random":
            return (random_inception().to(device), "random-Inception distance", "randomly initialised (seed 0), batch "
                    "norms calibrated on toy scenes: comparable only with itself", "random 1")
        instead = "use --inception-weights torchvision or random, which give no FID"
        if weights == "torchvision":
            found = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1
            net = inception.Inception3(num_classes=1000, aux_logits=True, init_weights=False)
            state, sha = load_weights("download", found.url, Path(found.url).name, "--inception-weights",
                                      "use --inception-weights random, which gives no FID")
            fit(net, state, "torchvision's inception_v3", "--inception-weights", weights)
            net.AuxLogits = None
            return InceptionFeatures(net).to(device), "distance (torchvision Inception)", f"torchvision {found}", sha
        net = inception_2015()
        state, sha = load_weights(weights, INCEPTION_URL, Path(INCEPTION_URL).name, "--inception-weights", instead)
        fit(net, state, f"the file of {INCEPTION_URL}", "--inception-weights", weights)
    if sha == INCEPTION_SHA256:
        return InceptionFeatures(net).to(device), "FID", "Inception of 2015-12-05 as ported by pytorch-fid", sha
    return (InceptionFeatures(net).to(device), f"distance (Inception of {Path(weights).name})",
            f"{weights}, sha256 {sha[:12]}, which is not the Inception of 2015-12-05", sha)


@torch.no_grad()
def feature_statistics(features, pictures, device, world):
    """Streamed over this rank's `pictures`, an iterable of lists of (H, W, 3) uint8 arrays, and summed over the ranks.

    -> (number of pictures, mean (D,), covariance (D, D)), float64 on the CPU. Memory does not grow with the number.
    Raises InputError for features that are not finite.
    """
    D = features.width
    totals = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((), (D,), (D, D))]
    for batch in pictures:
        f = features(to_tensor(batch, device)).double()                                       # (B, D)
        totals[0] += len(f)
        totals[1] += f.sum(dim=0)                                                             # (D,)
        totals[2].addmm_(f.T, f)                                                              # (D, D)
    n, total, outer = (sum_over_ranks(t, world) for t in totals)
    mean = total / n
    covariance = (outer - n * torch.outer(mean, mean)) / (n - 1)                              # unbiased, as np.cov
    if not torch.isfinite(covariance).all():
        raise InputError("--inception-weights: the features are not finite; expected weights of a trained Inception")
    return int(n), mean, covariance


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


def reference_statistics(features, key, read, count, device, batch_size, rank, world, cache):
    """feature_statistics of the real pictures read(0) ... read(count - 1), kept in the folder `cache`.

    key: a text that names the pictures, their size and the weights; it is what statistics are found again by.
    """
    file = Path(cache) / f"reference_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if file.is_file():  # rank 0 writes it below only after every rank has looked
        try:
            with np.load(file) as saved:
                if str(saved["key"]) == key:
                    return int(saved["count"]), torch.from_numpy(saved["mean"]), torch.from_numpy(saved["covariance"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # damaged: measure again
    shares = batches(count, batch_size, rank, world)
    pictures = (items for _, items in read_ahead(read, shares, "features of real pictures", rank == 0))
    n, mean, covariance = feature_statistics(features, pictures, device, world)
    if rank == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.stem + ".tmp.npz")
        np.savez(temporary, key=key, count=n, mean=mean.numpy(), covariance=covariance.numpy())
        os.replace(temporary, file)
    return n, mean, covariance


def score_generator(G, dataset, features, reference, device, rank=0, world=1, batch_size=16, amp=False, count=None):
    """The distance of `features` between seed 0 of a generator in memory and the real pictures, on all ranks: float.

    Writes no picture; the same value as `fid` of this file for the same weights.
    G: in eval mode. features: of load_inception. reference: of dataset_reference.
    """
    def pictures():
        shares = batches(count or len(dataset), batch_size, rank, world)
        for batch, samples in read_ahead(dataset.__getitem__, shares, "scoring", rank == 0):
            yield list(generate(G, *conditions(samples), noise(batch, 0, G.z_dim), device, amp))
    with scoring_precision():
        _, mean, covariance = feature_statistics(features, pictures(), device, world)
    return frechet_distance(mean, covariance, *reference[1:])


def dataset_reference(dataset, features, key, device, rank=0, world=1, batch_size=16, count=None, cache="eval_cache"):
    """reference_statistics of a dataset's real pictures at its image_size. features, key: of load_inception."""
    count = count or len(dataset)
    with scoring_precision():
        return reference_statistics(
            features, f"{key}\n{dataset.image_size}\n{count}\n{dataset.fingerprint()}",
            lambda i: dataset[i]["image"].permute(1, 2, 0).numpy(), count, device, batch_size, rank, world, cache)


def scoring_precision():
    """Full float32 convolutions and the same algorithm every time: a score is not the place for TF32."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


# ------------------------------------------------------------------------------------------ segmentation

IGNORED = ("pixels of classes that are not scored are left out; IoU over the whole set of pictures, its mean over the "
           "classes that occur in the label maps: a class that is only predicted has no IoU of its own, its pixels "
           "count as misses of the classes they lie on")


def scored_classes(dataset):
    """-> (K names, (C,) int64: the place 0..K-1 of each class among the scored ones, -1 = not scored)."""
    ids = np.asarray(dataset.score_ids)
    scored = np.unique(ids[ids >= 0])
    places = np.where(ids >= 0, np.searchsorted(scored, ids.clip(min=0)), -1)
    names = [" / ".join(dataset.classes[c] for c in np.flatnonzero(ids == k)) for k in scored]
    return names, torch.from_numpy(places.astype(np.int64))


def confusions(predicted, truth, K):
    """predicted (B, H, W) int64 in 0..K, K = none of the scored classes; truth (B, H, W) in -1..K-1, -1 = ignored
    -> (B, K, K + 1) int64: pixels, by their truth (rows) and prediction (columns)."""
    index = torch.where(truth >= 0, truth * (K + 1) + predicted, K * (K + 1)).flatten(1)      # (B, HW)
    counts = index.new_zeros(len(index), K * (K + 1) + 1)
    counts.scatter_add_(1, index, torch.ones_like(index))  # bincount would wait for the device
    return counts[:, :-1].unflatten(1, (K, K + 1))


def intersection_over_union(confusion):
    """(..., K, K + 1) of `confusions` -> (..., K) float64: hits / (truth + prediction - hits) among pixels that count,
    NaN for a class that does not occur in the truth, so that nanmean is the mIoU."""
    confusion = confusion.double()
    truth = confusion.sum(dim=-1)                                                             # (..., K)
    predicted = confusion.sum(dim=-2)[..., :-1]
    hits = confusion.diagonal(dim1=-2, dim2=-1)                                               # (..., K)
    return torch.where(truth > 0, hits / (truth + predicted - hits), torch.nan)


def pixel_accuracy(confusion):
    """(..., K, K + 1) -> (...): the share of right pixels among those that count, NaN where none counts."""
    confusion = confusion.double()
    return confusion.diagonal(dim1=-2, dim2=-1).sum(dim=-1) / confusion.sum(dim=(-2, -1))


class Segmenter(nn.Module):
    """Pictures (B, 3, H, W) uint8 -> (B, H, W) int64, the segmenter's own classes.

    net     takes (B, 3, h, w) float32 RGB in [0, 1], gives scores (B, S, ., .) or {"out": scores}; anything else, such
            as a mean and a standard deviation, several scales or BGR, belongs inside it
    size    (h, w) to which pictures are resized for it, bilinear; None = as they are
    Scores are resized to H x W, bilinear, before the largest one is taken.
    """

    def __init__(self, net, size=None):
        super().__init__()
        self.net, self.size = net, size

    def scores(self, pictures):
        x = pictures.float() / 255
        if self.size is not None:
            x = F.interpolate(x, size=self.size, mode="bilinear", align_corners=False)
        scores = self.net(x.contiguous())
        scores = scores["out"] if isinstance(scores, dict) else scores
        if not isinstance(scores, torch.Tensor) or scores.dim() != 4 or len(scores) != len(x):
            raise ValueError("gives no scores of shape (B, classes, height, width)")
        return F.interpolate(scores.float(), size=pictures.shape[2:], mode="bilinear", align_corners=False)

    def forward(self, pictures):
        return self.scores(pictures).argmax(dim=1)                                            # (B, H, W)


class HuggingFaceSegmenter(nn.Module):
    """The same of a model of `transformers`, with its own pre- and post-processing, such as Mask2Former (mIoU_MF)."""

    def __init__(self, name):
        super().__init__()
        try:
            import transformers
        except ImportError:
            raise InputError("--segmenter hf:NAME needs the package transformers: pip install transformers") from None
        try:
            self.processor = transformers.AutoImageProcessor.from_pretrained(name)
            config = transformers.AutoConfig.from_pretrained(name)
            kind = (transformers.AutoModelForUniversalSegmentation
                    if type(config) in transformers.AutoModelForUniversalSegmentation._model_mapping
                    else transformers.AutoModelForSemanticSegmentation)
            self.net, self.classes = kind.from_pretrained(name), len(config.id2label)
            self.processor.post_process_semantic_segmentation
        except Exception as error:  # of many kinds, by the package's version
            raise InputError(f"--segmenter hf:{name}: cannot be loaded ({str(error).strip().splitlines()[0]}); "
                             f"expected a semantic or universal segmentation model of the hub, or a folder") from None

    def forward(self, pictures):
        images = [p.permute(1, 2, 0).cpu().numpy() for p in pictures]                         # (H, W, 3) each
        x = self.processor(images=images, return_tensors="pt").to(pictures.device)
        sizes = [tuple(pictures.shape[2:])] * len(images)
        maps = self.processor.post_process_semantic_segmentation(self.net(**x), sizes)
        return torch.stack([m.to(pictures.device) for m in maps])                             # (B, H, W)


class SmallSegmenter(nn.Module):
    """torchvision's LRASPP on a small RegNet: (B, 3, H, W) in [0, 1] -> scores (B, K, H/4, W/4), twice that for sides
    below 128, which are enlarged: a person in a toy scene is four pixels wide."""

    def __init__(self, K, image_size):
        super().__init__()
        blocks = BlockParams(depths=[2, 2, 2], widths=[48, 96, 128], group_widths=[48, 32, 32],
                             bottleneck_multipliers=[1.0, 1.0, 1.0], strides=[2, 2, 1], se_ratio=None)
        trunk = create_feature_extractor(RegNet(blocks, num_classes=1), {
            "trunk_output.block1": "low", "trunk_output.block3": "high"})                     # strides 4 and 8
        self.net = LRASPP(trunk, low_channels=48, high_channels=128, num_classes=K)
        self.net.to(memory_format=torch.channels_last)
        self.size = [side * (2 if min(image_size) < 128 else 1) for side in image_size]

    def forward(self, x):
        x = F.interpolate(2 * x - 1, size=self.size, mode="bilinear", align_corners=False)
        # its own forward would enlarge the scores once more
        return self.net.classifier(self.net.backbone(x.contiguous(memory_format=torch.channels_last)))


def train_segmenter(dataset, steps, batch_size, samples, device, show):
    """A SmallSegmenter that has learnt the training pictures of a dataset, in eval mode. From seed 0 alone.

    samples: augmented samples that are drawn once and kept in memory; each is used many times, flipped or not.
    """
    names, places = scored_classes(dataset)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(len(dataset)) for _ in range(-(-samples // len(dataset)))])[:samples]
    pictures = torch.empty(samples, 3, *dataset.image_size, dtype=torch.uint8)
    truths = torch.empty(samples, *dataset.image_size, dtype=torch.int16)
    shares = batches(samples, 16, 0, 1)
    for batch, drawn in read_ahead(lambda n: dataset[int(order[n]), 0, n], shares, "training pictures", show):
        pictures[batch] = torch.stack([s["image"] for s in drawn])                            # (16, 3, H, W)
        truths[batch] = places[torch.stack([s["label_map"] for s in drawn]).long()].short()   # (16, H, W)
    count = torch.bincount(truths.flatten().int() + 1, minlength=len(names) + 1)[1:].float()  # (K,)
    # the square root of the inverse frequency: small classes count, and the large ones are not forgotten for them
    weight = (count.sum() / (len(names) * count.clamp_min(1))).sqrt().clamp_max(8).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SmallSegmenter(len(names), dataset.image_size).to(device).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=SEGMENTER_LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, SEGMENTER_LR, total_steps=steps)
    for _ in tqdm(range(steps), desc="training the segmenter", disable=None if show else True, dynamic_ncols=True):
        batch, flipped = rng.integers(samples, size=batch_size), rng.random(batch_size) < 0.5
        x, y = pictures[batch], truths[batch]                                                 # (B, 3, H, W), (B, H, W)
        x[flipped], y[flipped] = x[flipped].flip(3), y[flipped].flip(2)
        x, y = x.to(device), y.to(device).long()
        scores = Segmenter(net).scores(x)                                                     # (B, K, H, W)
        loss = F.cross_entropy(scores, y, weight, ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def load_segmenter(args, dataset, size, device, rank, world):
    """--segmenter -> (network as Segmenter, (S,) int64: place 0..K-1 of each of its classes or K, protocol: a text)."""
    names, _ = scored_classes(dataset)
    K, wanted, resize = len(names), args.segmenter, args.segmenter_size
    at = f"pictures of {size[0]}x{size[1]}"
    if wanted == "train":
        settings = (f"{args.segmenter_steps} steps of {SEGMENTER_BATCH} out of {SEGMENTER_SAMPLES} augmented samples, "
                    f"version 1")
        source = open_dataset(args.dataset, args.data_path, "train", size)
        key = f"{source.fingerprint()}\n{size}\n{source.classes}\n{settings}\n{device.type}"
        file = args.cache_dir / f"segmenter_{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"

        def build():
            if rank == 0 and not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                net = on_all_cores(lambda: train_segmenter(
                    source, args.segmenter_steps, SEGMENTER_BATCH, SEGMENTER_SAMPLES, device, True))
                save_atomically(net.state_dict(), file)
            with torch.random.fork_rng(devices=[]):  # training goes on with its own random numbers
                net = SmallSegmenter(K, size)
            try:
                net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            except Exception as error:  # torch raises many kinds for a damaged file
                raise InputError(f"{file}: damaged ({type(error).__name__}); remove it and run again") from None
            return net.eval()
        net, where = Segmenter(rank_0_first(build, rank, world)), (
            f"torchvision's LRASPP on a small RegNet, trained on the {len(source)} real training pictures of "
            f"{args.dataset} ({settings})")
    elif wanted.startswith("hf:"):
        net = rank_0_first(lambda: HuggingFaceSegmenter(wanted[3:]), rank, world)
        where = f"{wanted}, resized by its own processor to {getattr(net.processor, 'size', '?')}"
    else:
        net, where = Segmenter(load_program(wanted), resize), f"{wanted}, sha256 {sha256_of(wanted)[:12]}"
        at += f" resized to {resize[0]}x{resize[1]}" if resize else ""
    net = net.to(device).requires_grad_(False)  # exported programs have no eval(): they are exported in it
    S = K if wanted == "train" else net.classes if wanted.startswith("hf:") else count_classes(
        net, wanted, size, args.batch_size, device)
    places, mapping = class_mapping(S, dataset, wanted, args.segmenter_labels)
    return net, places.to(device), (f"segmenter: {where}; {at}, one scale, labels nearest at the same size; {mapping}; "
                                    f"{IGNORED}")


def load_program(file):
    """A TorchScript or torch.export file as a module. Raises InputError."""
    if not Path(file).is_file():
        raise InputError(f"--segmenter {file}: no such file; expected train, hf:NAME, or a TorchScript or torch.export "
                         f"FILE")
    reasons = []
    for load in (lambda: torch.jit.load(file, map_location="cpu").eval(), lambda: torch.export.load(file).module()):
        try:
            return load()
        except Exception as error:  # torch raises many kinds for a foreign file
            reasons.append((str(error).strip() or type(error).__name__).splitlines()[0][:80])
    raise InputError(f"--segmenter {file}: neither a TorchScript file ({reasons[0]}) nor one of torch.export "
                     f"({reasons[1]}); save it with torch.jit.save or torch.export.save")


@torch.no_grad()
def count_classes(net, name, size, batch_size, device):
    """S, from blank pictures, in the batches that will come. Raises InputError where the segmenter cannot take them."""
    for n in sorted({1, batch_size}):
        try:
            S = net.scores(torch.zeros(n, 3, *size, dtype=torch.uint8, device=device)).shape[1]
        except Exception as error:  # the program is anybody's
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            raise InputError(f"--segmenter {name}: fails on {n} pictures of {size[0]}x{size[1]} ({reason}); expected "
                             f"(B, 3, H, W) in [0, 1] -> (B, classes, h, w); see --segmenter-size, and --batch-size 1 "
                             f"for one that is exported for one picture") from None
    return S


def class_mapping(S, dataset, segmenter, file):
    """(S,) int64: the place 0..K-1 among the scored classes of each of the segmenter's, K = none of them; and a text.

    file: --segmenter-labels, a JSON list or lines with one label value (Cityscapes: train id) for each of its
    classes, -1 = none. Without it the numbers of classes must be the same. Raises InputError.
    """
    ids, (names, places) = np.asarray(dataset.score_ids), scored_classes(dataset)
    K, C = len(names), len(dataset.classes)
    scored = np.unique(ids[ids >= 0]).tolist()
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8").strip()
            values = json.loads(text) if text.startswith("[") else [int(line) for line in text.split()]
            strange = [v for v in values if type(v) is not int or v != -1 and v not in scored]
        except (OSError, ValueError) as error:
            raise InputError(f"--segmenter-labels {file}: cannot be read ({error}); expected a JSON list or lines with "
                             f"one number for each of the segmenter's {S} classes") from None
        if len(values) != S or strange:
            some = f", among them {strange[:4]}" if strange else ""
            raise InputError(f"--segmenter-labels {file}: {len(values)} numbers{some}; expected {S}, one for each "
                             f"class of the segmenter, out of {scored[0]}..{scored[-1]} or -1 for none")
        return torch.tensor([K if v == -1 else scored.index(v) for v in values]), f"classes mapped by {file}"
    if S == K:
        return torch.arange(K), f"its {K} classes are the {K} scored ones, in order"
    if S == C:
        return torch.where(places < 0, K, places), f"its {C} classes are the {C} label values"
    raise InputError(f"--segmenter {segmenter} tells {S} classes; expected the {K} scored ones or all {C} of the "
                     f"dataset, in order, or a --segmenter-labels FILE that says which is which")


@torch.no_grad()
def score_segmentation(net, mapping, dataset, read_fake, count, device, batch_size, rank, world):
    """A segmenter on the pictures read_fake(0) ... read_fake(count - 1) and on the real ones of the same maps.

    net, mapping: of load_segmenter. -> {"generated", "real": (K, K + 1) confusions, "by_map": (count,) IoU of the
    generated picture with its map, NaN where nothing of it is scored}, CPU tensors, the same on all ranks.
    """
    names, places = scored_classes(dataset)
    K, places = len(names), places.to(device)
    totals = {kind: torch.zeros(K, K + 1, dtype=torch.int64, device=device) for kind in ("generated", "real")}
    by_map = torch.zeros(count, dtype=torch.float64, device=device)

    def read(i):
        sample = dataset[i]
        return sample["label_map"], read_fake(i), sample["image"].permute(1, 2, 0).numpy()
    for batch, items in read_ahead(read, batches(count, batch_size, rank, world), "segmentation", rank == 0):
        label_maps, *pictures = zip(*items)
        truth = places[torch.stack(label_maps).to(device).long()]                             # (B, H, W), -1 = ignored
        for kind, some in zip(totals, pictures):
            found = confusions(mapping[net(to_tensor(some, device))], truth, K)               # (B, K, K + 1)
            totals[kind] += found.sum(dim=0)
            if kind == "generated":
                by_map[batch] = intersection_over_union(found).nanmean(dim=1)
    return {**{kind: sum_over_ranks(t, world) for kind, t in totals.items()}, "by_map": sum_over_ranks(by_map, world)}


# --------------------------------------------------------------------------------------------- diversity

class LPIPS(nn.Module):
    """Learned perceptual distance, AlexNet, version 0.1 (Table 9): sum over five layers of the mean over positions of
    sum_c w_c (f_c - g_c)^2, where f and g are features of length 1 at each position.

    alexnet: state dict of torchvision's alexnet. linear: the five w, as lpips/weights/v0.1/alex.pth holds them.
    """
    LAYERS = (1, 4, 7, 9, 11)  # the five ReLUs

    def __init__(self, alexnet, linear, flags=("--alexnet-weights", "--lpips-weights"), files=("", "")):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.net = torchvision.models.AlexNet().features
        alexnet = {k.removeprefix("features."): t for k, t in alexnet.items() if k.startswith("features.")}
        fit(self.net, alexnet, "torchvision's alexnet", flags[0], files[0])
        self.linear = nn.ParameterDict({str(n): torch.zeros(1, width, 1, 1) for n, width in
                                        enumerate((64, 192, 384, 256, 256))})
        linear = {k.removeprefix("lin").removesuffix(".model.1.weight"): t for k, t in linear.items()}
        fit(self.linear, linear, f"the file of {LPIPS_URL}", flags[1], files[1])
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, pictures):
        """(B, 3, H, W) uint8 -> five (B, C, h, w), of length 1 at each position."""
        x, found = (pictures.float() / 127.5 - 1 - self.mean) / self.std, []
        for n, layer in enumerate(self.net[:self.LAYERS[-1] + 1]):
            x = layer(x)
            if n in self.LAYERS:
                found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    def distance(self, f, g):
        """Two results of features, of B pictures each or one that is broadcast -> (B,)."""
        return sum(F.conv2d((a - b).square(), w).mean(dim=(1, 2, 3)) for a, b, w in zip(f, g, self.linear.values()))


def mean_over_pairs(pictures):
    """(S, ...) uint8 of one map -> mean over all pairs and values of |difference|, 1 = the whole range 0..255."""
    S = len(pictures)
    values = pictures.flatten(1).sort(dim=0).values.double()                                  # (S, 3HW)
    # sum over pairs of |a - b| = sum_k (2k - S + 1) x_k for x sorted upwards, k = 0 ... S - 1
    rank = 2 * torch.arange(S, device=values.device, dtype=torch.float64) - S + 1             # (S,)
    return (rank @ values).mean() / (255 * S * (S - 1) / 2)


@torch.no_grad()
def score_diversity(lpips, read, samples, count, device, rank, world):
    """Mean over `count` maps and all pairs of the pictures read(map, 0) ... read(map, samples - 1) (Table 9).

    lpips: an LPIPS or None. -> (LPIPS or None, pixel difference in 0..1).
    """
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    shares = batches(count, 1, rank, world)
    for _, (pictures,) in read_ahead(lambda i: [read(i, s) for s in range(samples)], shares, "diversity", rank == 0):
        pictures = to_tensor(pictures, device)                                                # (S, 3, H, W)
        totals[1] += mean_over_pairs(pictures)
        if lpips is not None:
            features, total = lpips.features(pictures), 0
            for s in range(samples - 1):
                total = total + lpips.distance([f[s:s + 1] for f in features], [f[s + 1:] for f in features]).sum()
            totals[0] += total.double() / (samples * (samples - 1) / 2)
    perceptual, pixels = (sum_over_ranks(totals, world) / count).tolist()
    return (None if lpips is None else perceptual), pixels


def load_lpips(args, device):
    """--alexnet-weights and --lpips-weights -> LPIPS, or None where they are "none". Raises InputError."""
    if "none" in (args.alexnet_weights, args.lpips_weights):
        return None
    instead = "use none, for the difference of pixels alone"
    alexnet, _ = load_weights(args.alexnet_weights, ALEXNET_URL, Path(ALEXNET_URL).name, "--alexnet-weights", instead)
    linear, _ = load_weights(args.lpips_weights, LPIPS_URL, "lpips_v0.1_alex.pth", "--lpips-weights", instead)
    return LPIPS(alexnet, linear, files=(args.alexnet_weights, args.lpips_weights)).to(device)


# ----------------------------------------------------------------------------------------- IIDM's scores

def colour_histograms(pictures):
    """(B, 3, H, W) uint8 -> (B, 3, 256) float64, pixels of each level of each channel."""
    levels = pictures.flatten(2).long()                                                       # (B, 3, HW)
    counts = levels.new_zeros(*levels.shape[:2], 256)
    return counts.scatter_add_(2, levels, torch.ones_like(levels)).double()


def style_similarity(fake, real):
    """S of IIDM (Sec. 3.1) in per cent for each pair: (B, 3, H, W) uint8 twice -> (B,) float64.

    PAPER: "the correlation coefficient between the color histograms of the generated image and of the reference image",
    no bins. / HERE: Pearson's, of 256 bins a channel, mean over the channels; the reference is the real picture of the
    map. WHY: there is no number of bins to choose; DP-SIMS has no style picture.
    """
    a, b = (h - h.mean(dim=2, keepdim=True) for h in (colour_histograms(fake), colour_histograms(real)))  # (B, 3, 256)
    r = (a * b).sum(dim=2) / (a.square().sum(dim=2) * b.square().sum(dim=2)).sqrt()           # (B, 3)
    return 100 * r.mean(dim=1)


@torch.no_grad()
def score_style(read_fake, read_real, count, device, batch_size, rank, world):
    """The mean of style_similarity over `count` pairs."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    shares = batches(count, batch_size, rank, world)
    for _, items in read_ahead(lambda i: (read_fake(i), read_real(i)), shares, "style", rank == 0):
        total += style_similarity(*(to_tensor(some, device) for some in zip(*items))).sum()
    return sum_over_ranks(total, world).item() / count


def total_score(M, A, S, FID):
    """T = M / 100 * [0.2 A + 0.3 (0.5 S + 50) + 0.5 (100 - FID)], all in per cent (IIDM Eq. 8)."""
    return M / 100 * (0.2 * A + 0.3 * (0.5 * S + 50) + 0.5 * (100 - FID))  # (IIDM Eq. 8)


# ------------------------------------------------------------------------------------------------ latency

def seconds_of(run, device):
    """How long one call of run() takes, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def measure_latency(G, sample, device, compiled, show):
    """Time, memory and size of a generator for one sample of a dataset (Table 4).

    -> {"one picture": [{"precision", "mode", "seconds", "deviation"} or {..., "not_run"}], "throughput": ...}. Label
    map and z lie on the device; the picture stays there.
    """
    def runner(net, n, precision):
        label_map, offsets = (t if t is None else t.expand(n, *t.shape[1:]).contiguous().to(device)
                              for t in conditions([sample]))
        label_map, z = label_map.long(), noise(range(n), 0, G.z_dim).to(device)

        def run():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                net(label_map, z, offsets)
        return run

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused attention is not counted
        runner(G, 1, "fp32")()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = {"parameters": sum(p.numel() for p in G.parameters()), "flops": counter.get_total_flops(),
             "one picture": []}
    for mode in ("eager", "compiled") if compiled else ("eager",):
        for precision in ("fp32", "bf16"):
            row = {"precision": precision, "mode": mode}
            try:
                net = torch.compile(G) if mode == "compiled" else G
                run = runner(net, 1, precision)
                row["first_call_seconds"] = seconds_of(run, device)
                for _ in range(LATENCY_WARM_UP):
                    run()
                runs = tqdm(range(LATENCY_RUNS), desc=f"latency {precision} {mode}", disable=None if show else True)
                times = [seconds_of(run, device) for _ in runs]
                row.update(seconds=float(np.mean(times)), deviation=float(np.std(times)))
            except Exception as error:  # compilers fail in many ways, which is no reason to lose the other scores
                if mode == "eager" and not isinstance(error, torch.OutOfMemoryError):
                    raise
                row["not_run"] = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:200]}"
            found["one picture"].append(row)
        if mode == "eager":
            found["memory_gib"] = peak_memory(device)
            found["throughput"] = [best_throughput(runner, G, precision, device) for precision in ("fp32", "bf16")]
    torch.compiler.reset()
    return found


@torch.no_grad()
def measure_denoising(G, sample, style, device, against, show):
    """Seconds for one picture of IIDM by IIDM Eq. 5 and DDIM, and of a GAN in turn with it, float32 (Table 4).

    style (3, H, W) in [-1, 1]. against: a generator, or None. -> [{"what", "passes" of the U-Net, "seconds",
    "deviation", "ratio" to the GAN or None}, ...].
    """
    T, label_map = iidm.START, sample["label_map"][None].to(device).long()
    styles, runs = style[None].to(device), {}
    for what, passes, inference in (("IIDM Eq. 5 from noise", iidm.STEPS, iidm.Inference(from_noise=True)),
                                    (f"IIDM Eq. 5 from T = {T}", T, iidm.Inference(start=(T,))),
                                    (f"DDIM from T = {T}", 50, iidm.Inference(start=(T,), ddim_steps=50)),
                                    (f"DDIM from T = {T}", 25, iidm.Inference(start=(T,), ddim_steps=25))):
        runs[what, passes] = lambda inference=inference: iidm.generate(G, label_map, styles, [0], inference)
    if against is not None:
        offsets = torch.zeros(1, 2, *label_map.shape[1:], device=device) if against.offset_channels else None  # as any
        z = noise([0], 0, against.z_dim).to(device)
        runs["GAN", 1] = lambda: against(label_map, z, offsets)
        for _ in range(LATENCY_WARM_UP):
            runs["GAN", 1]()
    iidm.generate(G, label_map, styles, [0], iidm.Inference(start=(1,)))
    times = {key: [] for key in runs}
    for _ in tqdm(range(DENOISING_RUNS), desc="latency", disable=None if show else True):
        for key, run in runs.items():
            times[key] += [seconds_of(run, device) for _ in range(LATENCY_RUNS // DENOISING_RUNS if key[0] == "GAN" else 1)]
    gan = None if against is None else float(np.mean(times["GAN", 1]))
    return [{"what": what, "passes": passes, "seconds": float(np.mean(of_one)), "deviation": float(np.std(of_one)),
             "ratio": gan and float(np.mean(of_one)) / gan} for (what, passes), of_one in times.items()]


def best_throughput(runner, G, precision, device):
    """-> {"precision", "batch_size", "pictures_per_second"}: the best of the batch sizes 1, 2, 4, ..., eager. Ends
    after two doublings without 2 % of gain, where memory ends, or where a batch takes 20 s."""
    best, since, n = {"precision": precision, "batch_size": 0, "pictures_per_second": 0.0}, 0, 1
    while since < 2 and n <= 1024:
        try:
            run = runner(G, n, precision)
            run()
            times = [seconds_of(run, device)]
            while sum(times) < 0.5 and len(times) < 20:
                times.append(seconds_of(run, device))
        except torch.OutOfMemoryError:
            break
        rate = n / float(np.median(times))
        since = 0 if rate > 1.02 * best["pictures_per_second"] else since + 1
        if rate > best["pictures_per_second"]:
            best.update(batch_size=n, pictures_per_second=rate)
        if times[0] > 20:
            break
        n *= 2
    return best


# ------------------------------------------------------------------------------------------------- output

def draw_eval_page(rows, path, titles, height=192):
    """rows [(caption, [(H, W, 3) uint8, ...]), ...] -> a PNG, each row under its caption; small pictures enlarged to
    about `height`. titles: of the columns."""
    H, W = rows[0][1][0].shape[:2]
    zoom, gap, text = max(1, round(height / H)), 4, 16
    head = text if titles else 0
    sheet = Image.new("RGB", (len(rows[0][1]) * (W * zoom + gap) - gap, head + len(rows) * (H * zoom + text)), "white")
    draw = ImageDraw.Draw(sheet)
    for n, title in enumerate(titles[:len(rows[0][1])]):
        draw.text((n * (W * zoom + gap) + 2, 2), title, fill="black")
    for n, (caption, pictures) in enumerate(rows):
        top = head + n * (H * zoom + text)
        draw.text((2, top + 2), caption, fill="black")
        for m, picture in enumerate(pictures):
            picture = Image.fromarray(picture).resize((W * zoom, H * zoom), Image.NEAREST)
            sheet.paste(picture, (m * (W * zoom + gap), top + text))
    temporary = path.with_name(path.name + ".tmp")
    sheet.save(temporary, format="PNG")
    os.replace(temporary, path)


def as_table(scores):
    """The scores as lines for the terminal: a name, a number, what it is."""
    lines = []

    def line(name, value, note=""):
        lines.append(f"{name:<34}{value:>12}  {note}".rstrip())
    for name, score in scores.items():
        if "not_run" in score:
            line(name, "not run", score["not_run"])
        elif name == "fid":
            line(score["name"], f"{score['value']:.4g}" if score["value"] < 1000 else f"{score['value']:.1f}",
                 f"{score['generated']} generated, {score['real']} real")
        elif name == "miou":
            line("mIoU", f"{score['generated']['mIoU']:.4f}", f"real pictures {score['real']['mIoU']:.4f}, ratio "
                 f"{score['ratio']:.1%}")
            line("pixel accuracy", f"{score['generated']['pixel_accuracy']:.4f}",
                 f"real pictures {score['real']['pixel_accuracy']:.4f}")
            both = [(c, score["generated"]["IoU"][c], score["real"]["IoU"][c]) for c in score["generated"]["IoU"]]
            text = ", ".join(f"{c} {a:.2f} ({b:.2f})" for c, a, b in both if a is not None)
            absent = [c for c, a, _ in both if a is None]
            lines.append(f"  IoU by class, generated (real): {text}" + (f"; not in the label maps: {', '.join(absent)}"
                                                                       if absent else ""))
        elif name == "diversity":
            line("LPIPS diversity", "not run" if score["LPIPS"] is None else f"{score['LPIPS']:.4f}",
                 score.get("LPIPS_not_run", ""))
            line("pixel diversity", f"{score['pixels']:.4f}", f"{score['samples']} pictures a map, pixels in [0, 1]")
        elif name == "latency" and "denoising" in score:
            for row in score["denoising"]:
                line(f"one picture, {row['what']}, {row['passes']} passes", f"{row['seconds']:.4f} s", f"+- {row['deviation']:.4f} s"
                     + (f", {row['ratio']:.1f} x the GAN" if row["ratio"] else ""))
        elif name == "latency":
            for row in score["one picture"]:
                line(f"one picture, {row['precision']} {row['mode']}",
                     "not run" if "not_run" in row else f"{1000 * row['seconds']:.2f} ms",
                     row.get("not_run") or f"+- {1000 * row['deviation']:.2f} ms over {LATENCY_RUNS} runs")
            for row in score["throughput"]:
                line(f"pictures a second, {row['precision']} eager", f"{row['pictures_per_second']:.1f}",
                     f"batch size {row['batch_size']}")
            line("parameters", f"{score['parameters']:,}")
            line("GFLOP a picture", f"{score['flops'] / 1e9:.3f}", "a multiply-add is two")
            line("peak memory", f"{score['memory_gib']:.2f} GiB", score["memory_of"])
        elif name == "iidm":
            for key, value, note in (("M", score["M"], "mask accuracy, %"),
                                     ("S", score["S"], f"style similarity to {score['style']}, %"),
                                     ("S to others", score["S_other"], "to the reference of another map, %"),
                                     ("A", score["A"], "aesthetic score, %"), ("T", score["T"], "total (IIDM Eq. 8)")):
                if key == "S to others" and value is None:
                    continue
                line(f"IIDM {key}", "not run" if value is None else f"{value:.2f}", note + score["notes"].get(key, ""))
    return "\n".join(lines)


def write_json(content, path):
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


# --------------------------------------------------------------------------------------------------- main

def parse_options(argv):
    """argv -> argparse.Namespace. Raises InputError for options that do not fit together."""
    parser = argparse.ArgumentParser(description="Score a generator, or folders of pictures. Run it again to go on "
                                     "where it stopped.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    group = parser.add_argument_group("what is scored")
    group.add_argument("--checkpoint", type=Path, help="an ema_*.pt of a run folder")
    group.add_argument("--fake", type=Path, metavar="DIR", help="instead: a folder of generated pictures; for mIoU "
                       "with --dataset and --data-path, named as its label maps")
    group.add_argument("--real", type=Path, metavar="DIR", help="with --fake: a folder of real pictures, not --dataset")
    group.add_argument("--reference", nargs="+", metavar="IMAGE_OR_FOLDER", help="style references of IIDM, and of its S: "
                       "train, training pictures at random; one image; or a folder with an image of each map's name; "
                       "default with an IIDM checkpoint: train")
    group.add_argument("--dataset", choices=DATASETS, help="default: what the checkpoint was trained on")
    group.add_argument("--data-path", help="folder of the dataset; not needed for toy")
    group.add_argument("--split", choices=("train", "val"), default="val")
    group.add_argument("--count", type=int, default=0, help="only the first so many maps; 0 = all, as the field does")
    group.add_argument("--image-size", type=parse_size, help="height x width; default: as trained, or that of the "
                       "pictures of --fake, to which real ones are then resized")
    group = parser.add_argument_group("scores")
    group.add_argument("--metrics", help=f"some of {','.join(METRICS)}; default: fid,miou,diversity,latency, or what "
                       "--fake allows of them; for IIDM fid,miou,iidm")
    group.add_argument("--inception-weights", help="download (the weights of 2015-12-05, which alone give FID), a FILE "
                       "of them, torchvision, or random; default: download, random for toy")
    group.add_argument("--segmenter", default="train", help="train (a small one on the dataset's real training "
                       "pictures), hf:NAME (needs transformers), or a TorchScript or torch.export FILE: "
                       "(B, 3, H, W) in [0, 1] -> scores")
    group.add_argument("--segmenter-size", type=parse_size, help="height x width of the pictures that a FILE gets")
    group.add_argument("--segmenter-labels", type=Path, metavar="FILE", help="label value of each of the segmenter's "
                       "classes, -1 = none: a JSON list, or lines; default: in order, where the numbers agree")
    group.add_argument("--segmenter-steps", type=int, default=SEGMENTER_STEPS, help="of --segmenter train")
    group.add_argument("--samples", type=int, default=20, help="pictures a map for the diversity (Table 9: 20)")
    group.add_argument("--alexnet-weights", help="for LPIPS: download, a FILE of torchvision's alexnet, or none; "
                       "default: download, none for toy")
    group.add_argument("--lpips-weights", help="for LPIPS: download, a FILE (alex.pth of lpips 0.1), or none")
    group.add_argument("--aesthetic", type=float, metavar="A", help="aesthetic score of the pictures in per cent, from "
                       "elsewhere, for IIDM's total")
    group.add_argument("--latency-modes", choices=("both", "eager"), default="both",
                       help="both: eager and torch.compile; eager is sooner done")
    group.add_argument("--latency-against", type=Path, metavar="EMA_FILE", help="with an IIDM checkpoint and --metrics latency "
                       "(which times IIDM Eq. 5 from noise and from the paper's T, and 50 and 25 steps of DDIM): a GAN's, "
                       "in turn with it")
    iidm.add_inference_options(parser)
    group = parser.add_argument_group("machine and output")
    group.add_argument("--output-dir", type=Path, help="default: eval_STEP beside the checkpoint, or eval")
    group.add_argument("--cache-dir", type=Path, help="statistics of real pictures and trained segmenters; default: "
                       "eval_cache beside the output folder")
    group.add_argument("--force", action="store_true", help="throw away another checkpoint's pictures in --output-dir")
    group.add_argument("--batch-size", type=int, default=16, help="per rank; lower it if memory runs out")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--amp", choices=("off", "bf16"), default="off", help="of the generator; scores stay float32")
    args = parser.parse_args(argv)
    if bool(args.checkpoint) == bool(args.fake):
        raise InputError("give either --checkpoint EMA_FILE or --fake DIR")
    if args.fake and not args.real and not args.dataset or args.real and (args.dataset or not args.fake):
        raise InputError("--fake DIR needs either --real DIR or --dataset NAME, and --real DIR needs --fake DIR alone")
    possible = METRICS if args.checkpoint else ("fid", "miou", "iidm") if args.dataset else ("fid",)
    if args.fake and (args.real and args.reference or iidm.inference_options(args)):
        raise InputError("with --fake DIR the pictures are there already: of IIDM's options --reference alone has a meaning, "
                         "and that with --dataset")
    if args.latency_against and not args.checkpoint:
        raise InputError(f"--latency-against {args.latency_against}: needs an IIDM --checkpoint, and --metrics latency")
    args.default_metrics = args.metrics is None
    asked = (args.metrics or ",".join(m for m in METRICS[:4] if m in possible)).split(",")
    strange = [m for m in asked if m not in possible]
    if strange:
        raise InputError(f"--metrics {strange[0]}: " + (
            "needs " + ("--dataset" if strange[0] in ("miou", "iidm") else "--checkpoint") if strange[0] in METRICS else
            f"no such score; choose from {','.join(possible)}"))
    args.metrics = [m for m in METRICS if m in asked]
    for name, low, high in (("count", 0, 10 ** 6), ("batch_size", 1, 10 ** 4), ("samples", 2, MOST_SEEDS),
                            ("segmenter_steps", 2, 10 ** 7)):
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {low} to {high}")
    if args.aesthetic is not None and not 0 <= args.aesthetic <= 100:
        raise InputError(f"--aesthetic {args.aesthetic}: expected per cent, 0 to 100")
    for flag, file in (("--checkpoint", args.checkpoint), ("--segmenter-labels", args.segmenter_labels),
                       ("--ensemble", args.ensemble), ("--latency-against", args.latency_against)):
        if file is not None and not file.is_file():
            raise InputError(f"{flag} {file}: not there")
    if args.output_dir is None:
        args.output_dir = args.checkpoint.with_name(f"eval_{args.checkpoint.stem.removeprefix('ema_')}") \
            if args.checkpoint else Path("eval")
    args.cache_dir = args.cache_dir or args.output_dir.parent / "eval_cache"
    return args


def open_what_is_scored(args, device):
    """-> (generator or None, dataset or None, {"names", "size", "count", "fake": read(i), "real": read(i), ...}).

    Raises InputError where checkpoint, dataset and pictures do not fit together."""
    G = checkpoint = inference = None
    if args.checkpoint:
        G, checkpoint = load_generator(args.checkpoint, device, args.ensemble)
        inference = check_inference(args, checkpoint)
        if inference is not None:
            args.reference = args.reference or ["train"]
            args.metrics = ["fid", "miou", "iidm"] if args.default_metrics else args.metrics
        if args.latency_against and (inference is None or "latency" not in args.metrics):
            raise InputError(f"--latency-against {args.latency_against}: needs an IIDM --checkpoint, and --metrics latency")
        args.dataset, size = args.dataset or checkpoint["dataset"], args.image_size or tuple(checkpoint["image_size"])
        if size[0] % G.downsampling or size[1] % G.downsampling:
            raise InputError(f"--image-size {size[0]}x{size[1]}: both sides must be divisible by {G.downsampling}")
    else:
        fake_files, size = open_pictures(args.fake, "--fake")
        if args.image_size and args.image_size != size:
            raise InputError(f"--fake {args.fake}: pictures of {size[0]}x{size[1]} (height x width), not "
                             f"{args.image_size[0]}x{args.image_size[1]}; generated pictures are scored as they are")
    if args.real:
        real_files, real_size = open_pictures(args.real, "--real", args.image_size)
        if real_size != size:
            raise InputError(f"--real {args.real}: pictures of {real_size[0]}x{real_size[1]} (height x width), those "
                             f"of --fake are {size[0]}x{size[1]}; --image-size {size[0]}x{size[1]} resizes them")
        fake, real = list(fake_files.values()), list(real_files.values())
        stats = "\n".join(f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in real)
        return None, None, {"inference": None, "style": None, "one_style": False, "against": None, "size": size,
                            "count": len(fake), "real_count": len(real), "real_key": stats,
                            "how": f"; files {suffixes(fake)} generated, {suffixes(real)} real" + (
                                "; real pictures resized bicubic" if args.image_size else ", as they are"),
                            "fake": lambda i: read_picture(fake[i], size),
                            "real": lambda i: read_picture(real[i], size, args.image_size)}
    offset_channels = 0 if G is None else checkpoint["generator"].get("offset_channels", 0)
    dataset = open_dataset(args.dataset, args.data_path, args.split, size,
                           instances=G is None or offset_channels > 0)
    if G is not None and (list(dataset.classes) != checkpoint["classes"] or 2 * dataset.has_instances != offset_channels):
        raise InputError(f"{args.checkpoint} was trained on {checkpoint['dataset']} with {len(checkpoint['classes'])} "
                         f"classes and {offset_channels} offset channels; --dataset "
                         f"{args.dataset} has {len(dataset.classes)} and {2 * dataset.has_instances}")
    against = None
    if args.latency_against:
        against, other = load_generator(args.latency_against, device)
        if other.get("architecture") == "iidm" or other["classes"] != list(dataset.classes) \
                or size[0] % against.downsampling or size[1] % against.downsampling:
            raise InputError(f"--latency-against {args.latency_against}: expected a GAN's ema_*.pt of the same dataset and size")
    count = min(len(dataset), args.count or len(dataset))
    if count < 2:
        raise InputError(f"--dataset {args.dataset}: {count} pictures to score; expected 2 or more (a covariance)")
    folder, style = args.output_dir / "pictures", None
    if args.reference:
        styles = open_references(args.reference, args.dataset, args.data_path, size, dataset.names[:count])
        if len(styles) > 1:
            raise InputError(f"--reference {' '.join(args.reference)}: {len(styles)} images; expected one, a folder with one for "
                             f"each label map, or train")
        style = next(iter(styles.values()))
    if args.fake:
        names = dataset.names[:count]
        alone = [name for name in names if name not in fake_files]
        if alone:
            raise InputError(f"--fake {args.fake}: no picture of {len(alone)} of the {count} label maps, such as "
                             f"{alone[0]}.png; expected one named as each label map (--count N for the first N)")
    return G, dataset, {
        "inference": inference, "style": style, "one_style": style is not None and "" not in styles, "against": against,
        "size": size, "count": count, "real_count": count, "real_key": dataset.fingerprint(), "folder": folder,
        "how": f"; one for each label map of {args.dataset} {args.split}, " + (
            f"{suffixes(fake_files.values())} files" if args.fake else "seed 0 of the averaged generator")
        + "; real pictures resized bicubic",
        "fake": lambda i, seed=0: read_picture(fake_files[dataset.names[i]] if args.fake
                                               else file_of(folder, seed, dataset.names[i]), size),
        "real": lambda i: dataset[i]["image"].permute(1, 2, 0).numpy()}


def suffixes(files):
    return " ".join(sorted({file.suffix for file in files}))


def evaluate(args):
    """Everything that main does, on every rank -> the scores."""
    device, rank, world = setup_distributed(args.device)
    torch.set_float32_matmul_precision("highest")
    say = print if rank == 0 else (lambda *_, **__: None)
    G, dataset, scored = open_what_is_scored(args, device)
    inference, style = scored["inference"], scored["style"]
    light = args.dataset == "toy"  # what a newcomer gets without a download
    args.inception_weights = args.inception_weights or ("random" if light else "download")
    args.alexnet_weights = args.alexnet_weights or ("none" if light else "download")
    args.lpips_weights = args.lpips_weights or ("none" if light else "download")
    out, size, count, amp, scores = args.output_dir, scored["size"], scored["count"], args.amp == "bf16", {}
    at = f"{size[0]}x{size[1]} (height x width)"
    try:
        out.mkdir(parents=True, exist_ok=True)
        args.cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {out}: cannot be written ({error.strerror}); choose another") from None
    manifest = args.checkpoint and {
        "checkpoint": sha256_of(args.checkpoint), "dataset": hashlib.sha256(dataset.fingerprint().encode()).hexdigest(),
        "split": args.split, "image_size": list(size), "amp": args.amp,
        "noise": f"z of map i and seed s: torch.randn from a CPU generator seeded with s * {SEED_STRIDE} + i"}
    if inference is not None:
        looks = hashlib.sha256()
        for name in dataset.names[:count] if not inference.from_noise else ():
            looks.update(style(name, 0).numpy().tobytes())
        manifest.update(inference=json.loads(json.dumps(inference)), reference=looks.hexdigest(),
                        ensemble=args.ensemble and sha256_of(args.ensemble))
    if manifest and rank == 0:
        claim_pictures(out / "pictures", manifest, args.force)
    if world > 1:
        dist.barrier()

    # everything that can fail for want of a file comes before the hours of work
    wants_segmenter = {"miou", "iidm"} & set(args.metrics)
    lpips = rank_0_first(lambda: load_lpips(args, device), rank, world) if "diversity" in args.metrics else None
    if {"fid", "iidm"} & set(args.metrics):
        features, distance_name, weights, key = rank_0_first(
            lambda: load_inception(args.inception_weights, device), rank, world)
    if "latency" in args.metrics and rank == 0:
        if inference is None:
            scores["latency"] = score_latency(G, dataset[0], device, args.latency_modes == "both", at)
        else:
            scores["latency"] = score_denoising(args, G, scored["against"], dataset, style, device, at)
    if world > 1:
        dist.barrier()
    if wants_segmenter:
        segmenter, mapping, segmenter_protocol = load_segmenter(args, dataset, size, device, rank, world)

    def draw(batch, samples, seed):
        label_map, offsets = conditions(samples)
        if inference is None:
            return generate(G, label_map, offsets, noise(batch, seed, G.z_dim), device, amp)
        styles = None if inference.from_noise else torch.stack([style(dataset.names[i], seed) for i in batch])  # (B, 3, H, W)
        return generate_iidm(G, label_map, styles, [seed * SEED_STRIDE + i for i in batch], inference, device, amp, rank == 0)

    if G is not None:
        seeds = range(args.samples if "diversity" in args.metrics else 1)
        if set(args.metrics) - {"latency"}:
            write_pictures(draw, dataset, scored["folder"], seeds, count, args.batch_size, rank, world)

    with scoring_precision():
        if {"fid", "iidm"} & set(args.metrics):
            reference = reference_statistics(features, f"{key}\n{size}\n{scored['real_count']}\n{scored['real_key']}",
                                             scored["real"], scored["real_count"], device, args.batch_size, rank, world,
                                             args.cache_dir)
            shares = batches(count, args.batch_size, rank, world)
            pictures = (items for _, items in read_ahead(scored["fake"], shares, "features", rank == 0))
            n, mean, covariance = feature_statistics(features, pictures, device, world)
            scores["fid"] = {
                "name": distance_name, "value": frechet_distance(mean, covariance, *reference[1:]), "generated": n,
                "real": reference[0], "protocol": f"{distance_name}: {weights}; 2048 features of 8-bit pictures of "
                f"{at}, resized to 299x299 (bilinear, corners not aligned, no antialiasing), scaled to [-1, 1]; {n} "
                f"generated against {reference[0]} real pictures; float64 statistics, unbiased covariance"
                f"{scored['how']}"}
        if wants_segmenter:
            found = score_segmentation(segmenter, mapping, dataset, scored["fake"], count, device, args.batch_size,
                                       rank, world)
            scores["miou"] = summarise_segmentation(found, scored_classes(dataset)[0], segmenter_protocol)
        if "diversity" in args.metrics:
            perceptual, pixels = score_diversity(lpips, scored["fake"], args.samples, count, device, rank, world)
            scores["diversity"] = {
                "LPIPS": perceptual, "pixels": pixels, "samples": args.samples, "maps": count, "protocol":
                f"diversity: mean over all pairs of {args.samples} pictures (seeds 0 to {args.samples - 1}) of each of "
                f"{count} maps, 8-bit pictures of {at}; LPIPS: AlexNet, version 0.1, pictures not resized; pixels: "
                f"mean absolute difference, pixels in [0, 1]"}
            if lpips is None:
                scores["diversity"]["LPIPS_not_run"] = (
                    f"give --alexnet-weights ({Path(ALEXNET_URL).name}) and --lpips-weights (alex.pth of lpips 0.1), "
                    f"each a FILE or download")
        if "iidm" in args.metrics:
            def style_of(i):
                return scored["real"](i) if style is None else to_pixels(style(dataset.names[i], 0)[None])[0]
            S, S_other = (score_style(scored["fake"], lambda i: style_of((i + shift) % count), count, device, args.batch_size,
                                      rank, world) if shift == 0 or style and not scored["one_style"] else None
                          for shift in (0, count // 2))
            scores["iidm"] = summarise_iidm(scores, S, S_other, "the real picture" if style is None else "the reference",
                                            args.aesthetic)
    if "latency" in scores:
        scores["latency"] = scores.pop("latency")  # last in the table
    if wants_segmenter and G is not None:
        page = pages_maps(found["by_map"])
        page_seeds = PAGE_SEEDS if inference is None else 1  # hundreds of passes a picture
        write_pictures(draw, dataset, scored["folder"], range(page_seeds), count, args.batch_size, rank, world,
                       only=[i for _, i in page])
    if rank == 0:
        about = {"checkpoint": str(args.checkpoint or ""), "fake": str(args.fake or ""), "real": str(args.real or ""),
                 "dataset": args.dataset, "split": args.split, "image_size": list(size), "maps": count,
                 "torch": torch.__version__, "torchvision": torchvision.__version__, "device": str(device),
                 "manifest": manifest}
        write_json({**about, "scores": scores}, out / "eval.json")
        say(f"{args.checkpoint or args.fake}: {count} pictures of {at}")
        say(as_table(scores))
        for score in scores.values():
            if "protocol" in score:
                say(f"  {score['protocol']}")
        if wants_segmenter:
            rows = []
            for what, i in pages_maps(found["by_map"]):
                sample = dataset[i]
                pictures = [scored["fake"](i, seed) for seed in range(page_seeds if G is not None else 1)]
                if style is not None:
                    pictures.append(style_of(i))
                rows.append((f"{what}: {dataset.names[i]}, IoU {found['by_map'][i]:.3f} (seed 0)",
                             [colour_labels(sample["label_map"], np.asarray(dataset.palette)),
                              sample["image"].permute(1, 2, 0).numpy(), *pictures]))
            draw_eval_page(rows, out / "eval.png", PAGE_TITLES if style is None else (*PAGE_TITLES[:3], "reference"))
            say(f"page:     {out / 'eval.png'}")
        say(f"numbers:  {out / 'eval.json'}")
    if world > 1:
        leave_ranks()
    return scores


def pages_maps(by_map):
    """(N,) IoU by map -> [("best", i), ..., ("worst", j), ...], no map twice."""
    order = [i for i in by_map.argsort(descending=True, stable=True).tolist() if not by_map[i].isnan()]
    best, worst = order[:PAGE_ROWS], order[max(PAGE_ROWS, len(order) - PAGE_ROWS):]
    return [("best", i) for i in best] + [("worst", i) for i in worst[::-1]]


def score_latency(G, sample, device, compiled, at):
    found = measure_latency(G, sample, device, compiled, True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    found["memory_of"] = "one picture, of the device" if device.type == "cuda" else "of the whole process"
    found["device"] = where
    found["protocol"] = (
        f"latency: {where}, torch {torch.__version__}; one picture of {at}, mean and standard deviation of "
        f"{LATENCY_RUNS} runs after {LATENCY_WARM_UP} of warm-up, from a label map on the device to a picture on it; "
        f"bf16 is autocast, fp32 is without TF32 in matrix products; FLOPs counted by torch in eager mode, a multiply-"
        f"add is two; batch sizes 1, 2, 4, ... tried for pictures a second")
    return found


def score_denoising(args, G, against, dataset, style, device, at):
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"denoising": measure_denoising(G, dataset[0], style(dataset.names[0], 0), device, against, True), "device": where,
            "protocol": f"latency: {where}, torch {torch.__version__}; one picture of {at}, float32, from a label map and a "
            f"reference on the device to a picture on it, E and D included; mean and standard deviation of {DENOISING_RUNS} "
            f"runs" + (f", each in turn with {LATENCY_RUNS // DENOISING_RUNS} of {args.latency_against}" if against else "")}


def summarise_segmentation(found, names, protocol):
    """The dict of score_segmentation as numbers for eval.json."""
    summary = {"protocol": protocol}
    for kind in ("generated", "real"):
        iou = intersection_over_union(found[kind])
        summary[kind] = {"mIoU": iou.nanmean().item(), "pixel_accuracy": pixel_accuracy(found[kind]).item(),
                         "IoU": {name: None if v != v else v for name, v in zip(names, iou.tolist())}}
    summary["ratio"] = summary["generated"]["mIoU"] / summary["real"]["mIoU"]
    return summary


def summarise_iidm(scores, S, S_other, style, A):
    """M, A, S and T (IIDM Sec. 3.1) with what has to be said about them, T also where FID or A had to be left out.

    style: what S compares with; S_other: S to another map's reference, None where there is one reference or none.

    PAPER: M by "a pretrained SegFormer", A by a model of aesthetics. / HERE: M is the pixel accuracy of --segmenter, A
    is given or left out. / WHY: neither model is named closely enough to load.
    """
    M, notes, name = 100 * scores["miou"]["generated"]["pixel_accuracy"], {}, scores["fid"]["name"]
    if A is None:
        notes["A"] = ": give --aesthetic A"
    lacks = ["its term 0.2 A"] * (A is None) + ["FID"] * (name != "FID")
    if lacks:
        notes["T"] = f", WITHOUT {' and '.join(lacks)}" + (f" ({name} in its place)" if name != "FID" else "") + ", so not IIDM's"
    return {"M": M, "A": A, "S": S, "S_other": S_other, "style": style, "T": total_score(M, A or 0.0, S, scores["fid"]["value"]),
            "notes": notes, "protocol":
            f"IIDM: M pixel accuracy of the segmenter above; S Pearson's correlation of 256-bin histograms, mean over "
            f"R, G, B and pictures, against {style} of each map; "
            "T = M/100 [0.2 A + 0.3 (0.5 S + 50) + 0.5 (100 - FID)] (IIDM Eq. 8)"}


if __name__ == "__main__":
    try:
        evaluate(parse_options(sys.argv[1:]))
    except (InputError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        print("evaluate.py: the device is out of memory; lower --batch-size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
