"""Train DP-SIMS (Sec. 3.3, 4.1): one file for a laptop, one GPU and many.

    python train.py --dataset toy                                        laptop, minutes, no download
    python train.py --dataset folder --data-path DIR                     one GPU, your own pictures
    torchrun --nproc_per_node 8 train.py --dataset folder --data-path DIR
    python train.py --model dpgan --dataset toy                          the baselines: oasis, dpgan, iidm

Run the same command again to go on where it stopped. Everything random is a function of (seed, step), so
a run that was interrupted ends where an uninterrupted one ends. A run folder holds

    options.json    what it was last started with          latest.pt       everything, to go on from
    metrics.jsonl   one line a log interval                ema_*.pt        the averaged generator, for sample.py
    scores.jsonl    with --evaluate-every                  ema_best.pt     the one nearest to the real pictures
    strip_*.png     what to look at, and strip.png, the newest of them
"""
import argparse
import copy
import errno
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torchvision
from torch.utils.data import DataLoader
from tqdm import tqdm

from baselines import dpgan, iidm, oasis
from data import (DATASETS, InputError, RareClassBatches, class_presence, colour_labels, draw_page, open_dataset,
                  parse_size, sampling_probabilities)
from discriminator import (BACKBONES, CONDITIONINGS, DECODER_WIDTHS, FULL_RESOLUTION_WIDTH, IMAGENET_MEAN, IMAGENET_STD,
                           Discriminator)
from generator import (ATTENTION_STRIDE, LABEL_CHANNELS, NOISE_HIDDEN, NOISE_TOKENS, NOISE_WIDTH, PADDING,
                       STEM_CHANNELS, WIDTHS, Z_DIM, parameters_by_part, to_pixels, z_of_seed)
from losses import (ContrastiveFeatures, class_weights, contrastive_loss, discriminator_loss,
                    diversity_loss, equal_weights, generator_loss, objective)
from sample import GENERATORS

# ------------------------------------------------------------------------------------------- presets

# The paper's numbers (Sec. 4.1) and, where it is silent, the choices of the README's table of departures.
PAPER = dict(
    image_size="256", steps=63_000, batch_size=64, lr=1e-3, lr_d=0.0, beta2=0.99, generator="dp-sims",
    noise="cross-attention", self_attention="on", concatenate_last="on", discriminator="dp-sims",
    backbone="convnext_large", backbone_weights="imagenet", conditioning="sigmoid-bn", patch="encoder", matched="decoder",
    vgg_weights="imagenet", lambda_gan=1.0, lambda_c=100.0, lambda_d=10.0, lambda_lm=0.0, lambda_patch=0.0,
    lambda_fm=0.0, gamma=2.0, class_weights="balanced", label_smoothing=0.1, tau=0.3, negatives=128, anchors=256,
    tau_div=1.0, reduction="sum", diversity_every=4, ema_decay=0.9999, lr_decay_steps=[0, 0], clip_grad=0.0,
    sampling="rare-class", offsets="on", log_every=50, workers=min(8, os.cpu_count() or 1),
    picture_every=1000, save_every=1000, ema_every=5000)
PAPER_NETWORKS = {
    "generator": {
        "dp-sims": dict(widths=WIDTHS, stem_channels=STEM_CHANNELS, label_channels=LABEL_CHANNELS, z_dim=Z_DIM,
                        noise_tokens=NOISE_TOKENS, noise_width=NOISE_WIDTH, noise_hidden=NOISE_HIDDEN,
                        attention_stride=ATTENTION_STRIDE, padding=PADDING),
        "oasis": dict(widths=WIDTHS, z_dim=Z_DIM, hidden=128, padding=PADDING),
        "dpgan": dict(widths=WIDTHS, stem_channels=STEM_CHANNELS, label_channels=LABEL_CHANNELS, z_dim=Z_DIM,
                      padding=PADDING)},
    "discriminator": {
        "dp-sims": dict(decoder_widths=DECODER_WIDTHS, full_resolution_width=FULL_RESOLUTION_WIDTH, spectral=True),
        "oasis": dict(encoder_widths=oasis.ENCODER_WIDTHS, decoder_widths=oasis.DECODER_WIDTHS),
        "dpgan": dict(encoder_widths=oasis.ENCODER_WIDTHS, decoder_widths=oasis.DECODER_WIDTHS, head_channels=64)},
    "contrastive": dict(vgg_width=1.0, width=256)}
# Found by measuring (RESULTS.md): the best pictures in about eight minutes on two CPU cores.
TOY = dict(
    PAPER, image_size="64", steps=2000, batch_size=4, backbone="resnet18", backbone_weights="self",
    vgg_weights="random", anchors=16, lambda_d=1.0, tau_div=0.4, ema_decay=0.995, clip_grad=5.0,
    lr_decay_steps=[1200, 2000], workers=1, log_every=50, picture_every=200, save_every=200, ema_every=0)
TOY_NETWORKS = {
    "generator": {
        "dp-sims": dict(widths=(96, 64, 32, 32, 32), stem_channels=16, label_channels=16, z_dim=Z_DIM, noise_tokens=8,
                        noise_width=32, noise_hidden=NOISE_HIDDEN, attention_stride=ATTENTION_STRIDE, padding="reflect"),
        "oasis": dict(widths=(96, 64, 32, 32, 32), z_dim=Z_DIM, hidden=32, padding="reflect"),
        "dpgan": dict(widths=(96, 64, 32, 32, 32), stem_channels=16, label_channels=16, z_dim=Z_DIM, padding="reflect")},
    "discriminator": {
        "dp-sims": dict(decoder_widths=(128, 96, 64, 48, 32), full_resolution_width=32, spectral=True),
        "oasis": dict(encoder_widths=(32, 64, 96, 128), decoder_widths=(128, 96, 64, 32)),  # to 4x4, as at 256x256
        "dpgan": dict(encoder_widths=(32, 64, 96, 128), decoder_widths=(128, 96, 64, 32), head_channels=32)},
    "contrastive": dict(vgg_width=0.25, width=64)}
PRESETS = {"paper": (PAPER, PAPER_NETWORKS), "toy": (TOY, TOY_NETWORKS)}
# What the systems of the other papers change, at any size ...
MODELS = {
    "dp-sims": dict(),
    "oasis": dict(generator="oasis", discriminator="oasis", gamma=0.0, label_smoothing=0.0, lambda_c=0.0, lambda_d=0.0,
                  lambda_lm=10.0, sampling="uniform", offsets="off"),
    "dpgan": dict(generator="dpgan", discriminator="dpgan", gamma=0.0, label_smoothing=0.0, lambda_c=0.0, lambda_d=0.0,
                  lambda_lm=5.0, lambda_patch=1.0, lambda_fm=1.0, class_weights="inverse", sampling="uniform",
                  offsets="off")}
# ... and at full size. PAPER: DP-GAN gives no batch size and no length. / HERE: OASIS's, 32 images for 200 epochs.
# WHY: its Table 1 compares with OASIS by the same protocol; its released code has 5 images, for one small GPU.
BASELINE_PAPER = dict(batch_size=32, steps=126_000, lr=1e-4, lr_d=4e-4, beta2=0.999)
# What a dataset changes in the paper's preset. PAPER: no training length. / HERE: OASIS's epochs, in steps of
# 64 images. / WHY: the comparison of Table 1 is with it.
DATASET_DEFAULTS = {
    "toy": dict(preset="toy"),
    "ade20k": dict(),                                                     # 200 epochs of 20,210 images
    "coco_stuff": dict(steps=185_000),                                    # 100 epochs of 118,000
    "cityscapes": dict(steps=60_000, image_size="256x512"),
    "folder": dict(),
}
BASELINE_DATASET_DEFAULTS = {                                             # OASIS's, in steps of 32 and of 20 images
    "coco_stuff": dict(steps=369_000),
    "cityscapes": dict(steps=29_750, batch_size=20, lr=4e-4, ema_decay=0.999, lambda_lm=5.0, image_size="256x512"),
}
# --row: the rows of the papers' tables, as options over all of the above.
LITE1, CONVNEXT_21K = "timm:tf_efficientnet_lite1", "timm:convnext_large.fb_in22k_ft_in1k"
ROWS = {
    "table2-swin-b": dict(backbone="swin_b"),
    "table2-resnet50": dict(backbone="resnet50"),
    "table2-efficientnet-lite1": dict(backbone=LITE1),
    "table2-convnext-b": dict(backbone="convnext_base"),
    "table2-convnext-l": dict(backbone="convnext_large"),
    "table3-random": dict(backbone_weights="random"),
    "table3-in1k-224": dict(backbone="convnext_large", backbone_weights="imagenet"),
    "table3-in21k-224": dict(backbone=CONVNEXT_21K, backbone_weights="imagenet"),
    "table3-in21k-384": dict(backbone=CONVNEXT_21K + "_384", backbone_weights="imagenet"),
    "table5-none": dict(conditioning="none"),
    "table5-ccm-csm": dict(conditioning="ccm-csm"),
    "table5-bn-ccm-csm": dict(conditioning="bn-ccm-csm"),
    "table5-no-sigmoid": dict(conditioning="bn"),
    "table5-no-bn": dict(conditioning="sigmoid"),
    "table6-dp-sims": dict(),
    "table6-oasis-discriminator": dict(discriminator="oasis"),
    "table6-oasis-generator": dict(generator="oasis"),
    "table6-no-self-attention": dict(self_attention="off"),
    "table6-no-cross-attention": dict(noise="concatenation"),
    "table6-no-label-smoothing": dict(label_smoothing=0.0),
    "table6-no-contrastive": dict(lambda_c=0.0),
    "table7-tau-0.07": dict(tau=0.07),
    "table7-tau-0.3": dict(tau=0.3),
    "table7-tau-0.7": dict(tau=0.7),
    "table7-tau-2.0": dict(tau=2.0),
    "table8-weighted-ce": dict(gamma=0.0),
    "table8-focal": dict(class_weights="none"),
    "table8-weighted-focal": dict(),
    "table9-oasis": dict(model="oasis"),
    "table9-dp-sims": dict(),
    "no-diversity": dict(lambda_d=0.0),
    "dpgan-table4a-oasis-oasis": dict(model="oasis"),
    "dpgan-table4a-oasis-dpgan": dict(model="dpgan", generator="oasis"),
    "dpgan-table4a-dpgan-oasis": dict(model="dpgan", discriminator="oasis", lambda_patch=0.0, lambda_fm=0.0),
    "dpgan-table4a-dpgan-dpgan": dict(model="dpgan"),
    "dpgan-table4b-none": dict(model="dpgan", patch="none", lambda_patch=0.0),
    "dpgan-table4b-decoder": dict(model="dpgan", patch="decoder"),
    "dpgan-table4b-both": dict(model="dpgan", patch="both"),
    "dpgan-table4b-encoder": dict(model="dpgan", patch="encoder"),
    "dpgan-table4c-none": dict(model="dpgan", matched="none", lambda_fm=0.0),
    "dpgan-table4c-encoder": dict(model="dpgan", matched="encoder"),
    "dpgan-table4c-both": dict(model="dpgan", matched="both"),
    "dpgan-table4c-decoder": dict(model="dpgan", matched="decoder"),
    "dpgan-supplement3-no-labelmix": dict(model="dpgan", lambda_lm=0.0),
    "dpgan-supplement3-no-concatenation": dict(model="dpgan", concatenate_last="off"),
}
PRETRAIN_STEPS, PRETRAIN_BATCH = 150, 32  # --backbone-weights self
EMA_BATCHES = 16    # training batches that give the averaged generator its batch-norm statistics
STRIP_ROWS = 6
FAKE_COLOUR = (255, 0, 255)


def parse_options(argv):
    """argv -> argparse.Namespace with every option set: the command line, over the dataset's defaults,
    over the row, over the model's, over the preset."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--dataset", default="toy")
    for name in ("--preset", "--model", "--row", "--backbone"):
        first.add_argument(name)
    known, _ = first.parse_known_args(argv)
    if known.row is not None and known.row not in ROWS:
        raise InputError(f"--row {known.row} is unknown; choose from {', '.join(ROWS)}")
    row, of_dataset = ROWS.get(known.row, {}), dict(DATASET_DEFAULTS.get(known.dataset, {}))
    preset, model = known.preset or of_dataset.pop("preset", "paper"), known.model or row.get("model", "dp-sims")
    for flag, value, choices in (("--preset", preset, PRESETS), ("--model", model, MODELS)):
        if value not in choices:
            raise InputError(f"{flag} {value} is unknown; choose from {', '.join(choices)}")
    if model != "dp-sims":
        of_dataset = {} if preset == "toy" else {**BASELINE_PAPER, **BASELINE_DATASET_DEFAULTS.get(known.dataset, {})}
    name = "_".join([known.dataset] + ([known.row] if known.row else [model] * (model != "dp-sims")))
    defaults = {**PRESETS[preset][0], **MODELS[model], **of_dataset, **row, "preset": preset, "model": model,
                "output_dir": f"runs/{name}"}
    # PAPER: "for pre-trained Swin backbones, we found it necessary to use gradient clipping", no value.
    # HERE: to a norm of 1. / WHY: the usual value.
    if (known.backbone or defaults["backbone"]).startswith("swin"):
        defaults["clip_grad"] = 1.0

    parser = argparse.ArgumentParser(
        description="Train DP-SIMS. Run the same command again to resume.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        epilog="Defaults shown are those of the --dataset and --preset on this command line.")
    group = add_data_options(parser)
    group.add_argument("--offsets", choices=("on", "off"), help="instance offsets as input, where there are instances")
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=(*MODELS, "iidm"), help="whose networks and losses; the others are baselines/; "
                       "iidm, the diffusion model, has options of its own: --model iidm --help")
    group.add_argument("--preset", choices=PRESETS, help="sizes of the networks and every default below")
    group.add_argument("--row", metavar="NAME", help="a row of the papers' tables, such as table5-none or "
                       "dpgan-table4b-both; the README lists them, a wrong name too")
    group.add_argument("--generator", choices=MODELS)
    group.add_argument("--noise", choices=("cross-attention", "concatenation"), help="how z enters the generator (Table 6)")
    group.add_argument("--self-attention", choices=("on", "off"), help="in the label pyramid (Table 6)")
    group.add_argument("--concatenate-last", choices=("on", "off"), help="the last map of DP-GAN's label pyramid, at "
                       "every scale (its supplement's Table 3)")
    group.add_argument("--discriminator", choices=MODELS)
    group.add_argument("--backbone", metavar="NAME", help=f"frozen backbone of the discriminator: {', '.join(BACKBONES)}, "
                       f"or timm:NAME (pip install timm)")
    group.add_argument("--conditioning", choices=CONDITIONINGS, help="of the backbone's features (Table 5)")
    group.add_argument("--patch", choices=dpgan.PATCH_LEVELS, help="where DP-GAN's patch heads sit (its Table 4b)")
    group.add_argument("--matched", choices=dpgan.MATCHED, help="features that DP-GAN matches "
                       "(its Table 4c)")
    group.add_argument("--backbone-weights", help="imagenet (torchvision downloads them), self (pre-trained "
                       "here, to tell the dataset's classes), random, or a file with the state dict of torchvision's model")
    group.add_argument("--pretrain-backbone", metavar="FILE", help="only pre-train --backbone as self does, into FILE "
                       "unless it is there, for --backbone-weights FILE of other runs")
    group.add_argument("--vgg-weights", help="for the contrastive loss: imagenet, random, or a file of vgg19")
    group = parser.add_argument_group("loss (Sec. 3.3)")
    group.add_argument("--lambda-gan", type=float, help="weight of Eq. 4")
    group.add_argument("--lambda-c", type=float, help="weight of the contrastive loss, Eq. 5; 0 leaves it out")
    group.add_argument("--lambda-d", type=float, help="weight of the diversity loss, Eq. 6; 0 leaves it out")
    group.add_argument("--lambda-lm", type=float, help="weight of LabelMix (DP-GAN Eq. 8); 0 leaves it out")
    group.add_argument("--lambda-patch", type=float, help="weight of the patch losses (DP-GAN Eq. 5); 0 leaves them out")
    group.add_argument("--lambda-fm", type=float, help="weight of feature matching (DP-GAN Eq. 6); 0 leaves it out")
    group.add_argument("--class-weights", choices=("balanced", "inverse", "none"), help="alpha_c: balanced as in OASIS, "
                       "inverse frequency (DP-GAN Eq. 4), or 1 for every known class (Table 8)")
    group.add_argument("--gamma", type=float, help="exponent of the focal loss; 0 is cross-entropy")
    group.add_argument("--label-smoothing", type=float, help="epsilon, on the real pixels of Eq. 3")
    group.add_argument("--tau", type=float, help="temperature of Eq. 5")
    group.add_argument("--negatives", type=int, help="N of Eq. 5")
    group.add_argument("--anchors", type=int, help="anchors per scale and image for Eq. 5")
    group.add_argument("--tau-div", type=float, help="cut-off of Eq. 6; raise it if two z look the same")
    group.add_argument("--diversity-every", type=int, help="each so-many-th image of a batch gets a second z "
                       "for Eq. 6; 1 = all, at the cost of a second generator pass")
    group.add_argument("--reduction", choices=("sum", "mean"), help="sum: as printed, divided by H*W; mean: "
                       "every sum a mean, which makes lambda-c about 250 times as strong at 256x256")
    group = add_optimisation_options(parser, "optimisation (Sec. 4.1)")
    group.add_argument("--lr-d", type=float, help="that of the discriminator; 0 = --lr, as in DP-SIMS")
    group.add_argument("--beta2", type=float, help="of Adam; beta1 is 0")
    group.add_argument("--sampling", choices=("rare-class", "uniform"), help="of training images; the baselines': uniform")
    group = add_machine_and_output_options(parser)
    group.add_argument("--evaluate-every", type=int, default=0, help="steps between evaluate.py's distances to the real "
                       "validation pictures, into scores.jsonl; the best is kept as ema_best.pt; 0 = never")
    group.add_argument("--inception-weights", default="random" if known.dataset == "toy" else "download",
                       help="for --evaluate-every: download (FID), torchvision, random, or a file")
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)
    check_ranges(args, (("diversity_every", "anchors", "negatives"), 1, 10 ** 9), (("evaluate_every",), 0, 10 ** 9),
                 (("lambda_gan", "lambda_c", "lambda_d", "lambda_lm", "lambda_patch", "lambda_fm", "gamma", "tau_div",
                   "lr_d"), 0, 1e9), (("tau",), 1e-12, 1e9), (("label_smoothing", "beta2"), 0, 0.999999))
    if args.backbone not in BACKBONES and not args.backbone.startswith("timm:"):
        raise InputError(f"--backbone {args.backbone} is unknown; choose from {', '.join(BACKBONES)}, or timm:NAME")
    for weight, has in (("lambda_patch", args.patch != "none"), ("lambda_fm", args.matched != "none")):
        if getattr(args, weight) > 0 and not (has and args.discriminator == "dpgan"):
            raise InputError(f"--{weight.replace('_', '-')} {getattr(args, weight)} needs --discriminator dpgan with "
                             f"--{'patch' if weight == 'lambda_patch' else 'matched'} other than none; or give 0")
    return args


def add_data_options(parser):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="toy", help="toy needs no files")
    group.add_argument("--data-path", help="folder of the dataset; the error for a wrong one shows its layout")
    group.add_argument("--image-size", type=parse_size, help="height x width: 256, or 256x512; each side "
                       "divisible by 32")
    return group


def add_optimisation_options(parser, title):
    group = parser.add_argument_group(title)
    group.add_argument("--steps", type=int, help="the step to reach, not a number of further steps")
    group.add_argument("--batch-size", type=int, help="GLOBAL batch size, over all ranks")
    group.add_argument("--micro-batch-size", type=int, default=0, help="images per rank in memory at once; "
                       "lower it if memory runs out (0 = all; batch norm then sees the smaller batch)")
    group.add_argument("--lr", type=float, help="learning rate")
    group.add_argument("--lr-decay-steps", type=int, nargs=2, metavar=("FROM", "TO"),
                       help="linear decay to a tenth between these steps; 0 0 = none, as in the paper")
    group.add_argument("--clip-grad", type=float, help="largest gradient norm; 0 = off (Swin: 1)")
    group.add_argument("--ema-decay", type=float)
    group.add_argument("--seed", type=int, default=0)
    return group


def add_machine_and_output_options(parser):
    group = parser.add_argument_group("machine")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--amp", choices=("off", "bf16"), default="off", help="bf16 autocast; losses stay float32")
    group.add_argument("--compile", action="store_true", help="torch.compile (all but D's decoder); minutes at the start")
    group.add_argument("--workers", type=int, help="loader processes per rank")
    group = parser.add_argument_group("output")
    group.add_argument("--output-dir", help="run folder; a run found there is resumed")
    group.add_argument("--log-every", type=int, help="steps")
    group.add_argument("--picture-every", type=int, help="steps; 0 = only at the end")
    group.add_argument("--save-every", type=int, help="steps between writes of latest.pt; 0 = only at the end")
    group.add_argument("--ema-every", type=int, help="steps between the ema_*.pt that are kept; 0 = only at the end")
    return group


def check_ranges(args, *further):
    """Raises InputError for a number of the options above, or of `further` (names, low, high), that is out of range."""
    for names, low, high in ((("steps", "batch_size", "log_every"), 1, 10 ** 9),
                             (("micro_batch_size", "workers", "seed", "picture_every", "save_every", "ema_every"), 0, 10 ** 9),
                             (("clip_grad",), 0, 1e9), (("lr",), 1e-12, 1e9), (("ema_decay",), 0, 0.999999), *further):
        for name in names:
            if not low <= getattr(args, name) <= high:
                raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {low} to {high}")
    start, end = args.lr_decay_steps
    if not (start == end == 0 or 0 <= start < end):
        raise InputError(f"--lr-decay-steps {start} {end}: expected two rising steps, or 0 0 for none")
    args.lr_decay_steps = list(args.lr_decay_steps)


# ------------------------------------------------------------------------------------------- many ranks

def setup_distributed(device):
    """-> (device, rank, world). One process, or as many as torchrun started (RANK, WORLD_SIZE in the environment)."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this torch sees no CUDA device; use --device cpu")
    rank, world, local_rank = (int(os.environ.get(name, default)) for name, default in
                               (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if device == "cuda":
        device = f"cuda:{local_rank}"  # TRAP: local rank, or two nodes share a device
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    if world > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if "cuda" in device else "gloo")
    return torch.device(device), rank, world


def rank_0_first(build, rank, world):
    """build() on every rank; rank 0 first, which downloads or trains what the others then find."""
    if rank > 0:
        dist.barrier()
    built = build()
    if rank == 0 and world > 1:
        dist.barrier()
    return built


class SumOverRanks(torch.autograd.Function):
    """A tensor's sum over the ranks. Each rank's loss sees the sum, so gradients are summed on the way back."""

    @staticmethod
    def forward(ctx, t):
        t = t.clone()
        dist.all_reduce(t)
        return t

    @staticmethod
    def backward(ctx, gradient):
        return SumOverRanks.forward(ctx, gradient)


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d whose batch is that of all ranks, on CPU, where nn.SyncBatchNorm refuses to run."""

    def forward(self, x):
        if not self.training and self.track_running_stats:
            return super().forward(x)
        dtype, x = x.dtype, x.float() if x.dtype == torch.bfloat16 else x
        n = SumOverRanks.apply(x.new_tensor(x.numel() / x.shape[1]))  # shards may differ by a second z
        mean = SumOverRanks.apply(x.sum(dim=(0, 2, 3))) / n                               # (C,)
        centred = x - mean[:, None, None]
        variance = SumOverRanks.apply(centred.square().sum(dim=(0, 2, 3))) / n            # (C,)
        if self.track_running_stats:
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * n / (n - 1), momentum)
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        y = y * self.weight[:, None, None] + self.bias[:, None, None] if self.affine else y
        return y.to(dtype)


def synchronise_batch_norm(net, device, world):
    """Batch statistics over all ranks: a batch split over ranks is normalised as one batch."""
    if world == 1:
        return net
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)  # it waits for the device once a layer; not measured
    for module in net.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = CPUSyncBatchNorm
    return net


def average_gradients(parameters, world):
    """Replace every gradient by its mean over the ranks, in one all-reduce."""
    if world > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, mean in zip(gradients, flat.div_(world).split([g.numel() for g in gradients])):
            g.copy_(mean.view_as(g))


# ------------------------------------------------------------------- averaged generator and checkpoints

@torch.no_grad()
def update_ema(ema, G, step, decay):
    """theta_ema <- d theta_ema + (1 - d) theta over the parameters, d = min(decay, (1 + step) / (10 + step)).

    PAPER: decay 0.9999. / HERE: with this warm-up. / WHY: 0.9999 alone keeps 40 % of the initial
    weights after 9,200 steps. Buffers are not averaged: see refresh_ema.
    """
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(G.parameters()), 1 - d)


@torch.no_grad()
def refresh_ema(ema, G, batches):
    """Give the averaged generator buffers of its own before it is used; leaves it in eval mode.

    Batch-norm statistics are measured anew on training label maps. TRAP: the spectral norm's u and v are
    copied from G and power-iterated on these passes; averaging them would give a wrong norm.
    PAPER: silent. / HERE: over the first 16 training batches. / WHY: G's own statistics belong to other weights.
    """
    for mine, theirs in zip(ema.buffers(), G.buffers()):
        mine.copy_(theirs)
    norms = [m for m in ema.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over the batches
    ema.train()
    for label_map, offsets, z in batches():
        ema(label_map, z, offsets)
    ema.eval()
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum


def save_atomically(state, path):
    """torch.save beside `path`, then swap: a kill or a full disk at any moment leaves the old file whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error}); the file of the last save, if any, is whole; "
                         f"make room or choose another --output-dir, and run the same command again") from None


def load_checkpoint(path):
    """A checkpoint's dict, plain types and tensors only. Raises InputError where it cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"step", "identity", "options"} <= state.keys():
            raise ValueError("another kind of file")
        return state
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}); move it away to "
                         f"start anew, or give another file") from None


def trained(net):
    """The state dict of net (or None) without its frozen backbone, which any run can load again by itself."""
    return {} if net is None else {k: v for k, v in net.state_dict().items() if not k.startswith("backbone.")}


def load_trained(net, state):
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(k.startswith("backbone.") for k in missing), (missing, unexpected)


def fingerprint(net):
    """One number for the frozen weights of net, to notice another backbone on resume; 0 where there are none."""
    frozen = getattr(net, "backbone", None)
    return 0.0 if frozen is None else sum(p.cpu().double().abs().sum().item() for p in frozen.parameters())


# --------------------------------------------------------------------------------------------- pictures

@torch.no_grad()
def strip_columns(G, ema, D, dataset, device):
    """The anatomy of training on validation samples: what goes in, what comes out, what D says."""
    rows = min(STRIP_ROWS, len(dataset))
    samples = [dataset[i * len(dataset) // rows] for i in range(rows)]  # spread: neighbours may be video frames
    real = torch.stack([s["image"] for s in samples]).to(device).float() / 127.5 - 1
    label_map = torch.stack([s["label_map"] for s in samples]).to(device).long()
    offsets = torch.stack([s["offsets"] for s in samples]).to(device) if dataset.has_instances else None
    z = [torch.stack([z_of_seed(2 * i + k, G.z_dim) for i in range(len(samples))]).to(device) for k in (0, 1)]
    G.eval()
    generated, averaged, second = G(label_map, z[0], offsets), ema(label_map, z[0], offsets), ema(label_map, z[1], offsets)
    G.train()
    palette = np.concatenate([dataset.palette, [FAKE_COLOUR]]).astype(np.uint8)
    D.eval()  # no power iteration of its spectral norm: looking must not change the run
    says = [colour_labels(D(image).argmax(dim=1).cpu(), palette) for image in (real, generated)]
    D.train()
    return {"label map": colour_labels(label_map.cpu(), palette), "real": to_pixels(real),
            "generated": to_pixels(generated), "EMA": to_pixels(averaged), "EMA, second z": to_pixels(second),
            "D on real": says[0], "D on generated": says[1]}


def resume(state, identity, path, args, say, G, D, P, ema, optimiser_G, optimiser_D):
    """Put a checkpoint's state back into the networks and optimisers; -> the step it was saved at."""
    check_identity(state, identity, path, args, say)
    G.load_state_dict(state["G"])
    ema.load_state_dict(state["ema"])
    load_trained(D, state["D"])
    if P is not None:
        load_trained(P, state["P"])
    optimiser_G.load_state_dict(state["optimiser_G"])
    optimiser_D.load_state_dict(state["optimiser_D"])
    return state["step"]


def check_identity(state, identity, path, args, say):
    """Raises InputError for a checkpoint of another model or dataset, and says which options have changed."""
    for key, now in identity.items():
        then = state["identity"].get(key)
        same = np.allclose(then, now, rtol=1e-6) if key == "frozen" else then == now
        if not same:
            what = "frozen weights" if key == "frozen" else f"{key} {then}"
            raise InputError(f"{path} was trained with {what}, this command has {'others' if key == 'frozen' else now}; "
                             f"choose another --output-dir or the options it was started with")
    changed = [f"{k} {then} -> {vars(args)[k]}" for k, then in state["options"].items()
               if k in vars(args) and list_of(vars(args)[k]) != list_of(then) and k not in ("steps", "output_dir")]
    if changed:
        say(f"resuming with other options than before: {', '.join(changed)}")


def list_of(value):
    return list(value) if isinstance(value, (tuple, list)) else value


def read_lines_of(path):
    """The dicts of a .jsonl file, up to a half-written one."""
    lines = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def keep_steps_up_to(step, path):
    """Drop the lines of steps that a killed run logged after its last save, and a half-written one."""
    if not path.is_file():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in read_lines_of(path) if line["step"] <= step))
    os.replace(temporary, path)


def build_frozen(build, name, weights, flag):
    """build() a network around torchvision's `name`; an InputError with the remedy where its weights fail."""
    try:
        return build()
    except (OSError, ValueError, RuntimeError) as error:
        if name.startswith("timm:"):
            raise InputError(f"{flag} {weights}: {error}; expected a file of timm's weights for {name}, or imagenet where "
                             f"there is a network, or random") from None
        if weights == "imagenet" and isinstance(error, OSError):
            url = torchvision.models.get_model_weights(name).DEFAULT.url
            raise InputError(f"the ImageNet weights of {name} cannot be downloaded ({error}); fetch {url} where there "
                             f"is a network and give it as {flag} FILE, or use {flag} random") from None
        raise InputError(f"{flag} {weights}: {error}; expected a file saved by torch.save with "
                         f"the state dict of torchvision's {name}") from None


def own_group(worker):
    """For loader processes: out of the process group, whose SIGTERM or Ctrl-C is for the training process alone."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def batches_of(loader):
    """The loader's batches; an InputError of a loader process without its stack trace."""
    try:
        yield from loader
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("data.InputError: ")) from None


def pretrain_backbone(name, dataset, probabilities, path, seed, device, workers):
    """--backbone-weights self: torchvision's `name` learns which classes a picture contains, and is kept at `path`.

    PAPER: backbones pre-trained on ImageNet. / HERE: also this, for the toy scenes and wherever ImageNet weights
    cannot be had. / WHY: it is what Sec. 3.1 asks of a backbone, "pre-trained for tasks such as image
    classification", in half a minute and without a download.
    """
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith("timm:"):
            try:
                import timm
                net = timm.create_model(name.removeprefix("timm:"), num_classes=len(dataset.classes))
            except (ImportError, RuntimeError) as error:
                raise InputError(f"--backbone {name}: {error}; pip install timm, and see timm.list_models()") from None
            config = timm.data.resolve_model_data_config(net)
            mean, std = config["mean"], config["std"]
        else:
            net = torchvision.models.get_model(name, weights=None, num_classes=len(dataset.classes))
    net = net.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    mean, std = (torch.tensor(t, device=device).view(1, 3, 1, 1) for t in (mean, std))
    sampler = RareClassBatches(probabilities, PRETRAIN_BATCH, 0, PRETRAIN_STEPS, seed)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers)
    for batch in tqdm(batches_of(loader), total=PRETRAIN_STEPS, desc=f"pre-training {name}", leave=False, disable=None):
        x = ((batch["image"].to(device).float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        label_map = batch["label_map"].to(device).long().flatten(1)                   # (B, HW)
        contains = torch.zeros(len(x), len(dataset.classes), device=device).scatter_(1, label_map, 1.0)  # (B, C)
        loss = nn.functional.binary_cross_entropy_with_logits(net(x), contains)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    if not loss.isfinite():
        raise InputError(f"--backbone-weights self: pre-training {name} ended at a loss of {loss.item()}; use a smaller "
                         f"--backbone, or weights from a file")
    save_atomically(net.state_dict(), path)


# ------------------------------------------------------------------------------------------- the numbers

def lr_factor(step, start, end):
    """1 until step `start`, then linearly down to 0.1 at `end`; always 1 if there is no such interval."""
    return 1.0 if end <= start else 1 - 0.9 * min(max((step - start) / (end - start), 0), 1)


def add(values, new, accumulation):
    for name, value in new.items():
        values[name] = values.get(name, 0) + value.detach().float() / accumulation


def gradient_norms(terms, image, features):
    """L2 norm of each weighted term's gradient by the generated images, and by G^f (Eq. 6 reaches only that).

    Of the images that this rank has in memory at once; the log gives the mean over ranks.
    """
    norms = {}
    for name, term in terms.items():
        by = (None, None)
        if term.requires_grad:
            by = torch.autograd.grad(term, (image, features), retain_graph=True, allow_unused=True)
        for where, g in zip(("image", "features"), by):
            if (name, where) != ("diversity", "image"):  # the same names on every rank, pairs or none
                norms[f"{name}_gradient_{where}"] = image.new_zeros(()) if g is None else g.float().norm()
    return norms


def clip(parameters, limit, wanted):
    """Scale the gradients down to norm `limit` (0 = leave them) and, where wanted, return their norm before."""
    if limit:  # TRAP: after the ranks are averaged, or each rank clips something else
        return nn.utils.clip_grad_norm_(parameters, limit)
    if wanted:
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def check_finite(log, step, nets, latest):
    """Stop at the first loss term that is not finite, and never let such weights reach a checkpoint."""
    names = [name for name in log[0] if name in ("D", "loss") or name.startswith("G_")] if log else []
    if names:
        table = torch.stack([torch.stack([values[name] for name in names]) for values in log])  # (steps, terms)
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise InputError(f"step {step - len(log) + 1 + row}: loss term {names[column]} is "
                             f"{table[row, column].item()}; {last_good(latest)}. Try a lower --lr or --clip-grad 1")
    for name, net in nets.items():
        total = sum(p.detach().double().sum() for p in net.parameters() if p.requires_grad)
        if not total.isfinite():
            raise InputError(f"step {step}: a parameter of {name} is not finite; {last_good(latest)}. "
                             f"Try a lower --lr or --clip-grad 1")


def last_good(latest):
    return f"{latest} holds the last good step" if latest.is_file() else "nothing was saved before it"


def summarise(log, step, world, device):
    """The mean of every value over the logged steps that have it, and over the ranks; the one wait for the device."""
    names = list(log[-1])
    means = torch.stack([torch.stack([v[name] for v in log if name in v]).mean() for name in names]).to(device)
    if world > 1:
        dist.all_reduce(means)
    return {"step": step, **dict(zip(names, (means / world).tolist()))}


def peak_memory(device):
    """GiB: of the device on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2 ** 30 if sys.platform == "darwin" else 2 ** 20)


def report(line, steps, progress):
    text = " | ".join(f"{title} {line[name]:.3f}" for title, name in (
        ("loss", "loss"), ("D", "D"), ("G gan", "G_gan"), ("nce", "G_contrastive"), ("div", "G_diversity"),
        ("acc real", "D_accuracy_real"), ("fake", "D_accuracy_fake")) if name in line)
    if progress.disable:
        left = (steps - line["step"]) * line["seconds_per_step"]
        print(f"step {line['step']:6d}/{steps} | {text} | {line['images_per_second']:.1f} img/s | "
              f"eta {int(left // 60)}:{int(left % 60):02d}", flush=True)
    else:
        progress.set_postfix_str(f"{text} | {line['images_per_second']:.1f} img/s")


def banner(say, args, device, world, micro, accumulation, G, D, P, run, done, images):
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    count = lambda net, trains: sum(p.numel() for p in net.parameters() if p.requires_grad == trains)
    frozen = f"{count(D, False):,} frozen ({args.backbone}, {args.backbone_weights})" if D.backbone else "nothing frozen"
    title = {"dp-sims": "DP-SIMS", "oasis": "OASIS", "dpgan": "DP-GAN"}[args.model] + (f", {args.row}," if args.row else "")
    say(f"{title} on {args.dataset}: {images} images, preset {args.preset}, torch {torch.__version__}\n"
        f"device      {device} ({where}), {world} rank{'s' * (world > 1)}, precision "
        f"{'bf16 autocast' if args.amp == 'bf16' else 'float32'}\n"
        f"batch       {args.batch_size} = {world} ranks x {micro} images x {accumulation} accumulated\n"
        f"steps       {args.steps} = {args.steps * args.batch_size / images:.1f} epochs\n"
        f"generator   {count(G, True):,} parameters: " + ", ".join(
            f"{part} {n:,}" for part, n in parameters_by_part(G).items()) + "\n"
        f"discrimin.  {count(D, True):,} trained, {frozen}\n"
        + (f"contrastive {count(P, True):,} trained, {count(P, False):,} frozen (VGG-19, {args.vgg_weights})\n" if P else "") +
        f"run folder  {run}, {f'resumed at step {done}' if done else 'new'}", flush=True)


class StopOnSignals:
    """SIGTERM and Ctrl-C end the loop after its step, on all ranks after the same one; a second one interrupts."""

    def __init__(self, world):
        self.seen, self.agreed = [], None
        self.control = dist.new_group(backend="gloo") if world > 1 else None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handler)

    def handler(self, number, frame):
        if self.seen:
            raise KeyboardInterrupt
        self.seen.append(number)

    def now(self):
        """Whether to stop, asked once a step. With many ranks they learn of a signal one step later, without waiting."""
        if self.control is None:
            return bool(self.seen)
        if self.agreed is not None:
            self.agreed[1].wait()
        stop = self.agreed is not None and self.agreed[0].item() > 0
        flag = torch.tensor([len(self.seen)])
        self.agreed = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control, async_op=True)
        return stop


# --------------------------------------------------------------------------------------------- training

def split_batch(args, world, step_of):
    """-> (images per rank, per rank at once, and how often to accumulate). Raises InputError for sizes that do not divide.

    step_of: what both sides of the picture must be divisible by."""
    per_rank = args.batch_size // world
    micro = args.micro_batch_size or per_rank
    if args.batch_size % world or per_rank % micro:
        raise InputError(f"--batch-size {args.batch_size} must split evenly over {world} ranks and into micro-"
                         f"batches of {micro}; choose a multiple of {world * micro}")
    H, W = args.image_size
    if H % step_of or W % step_of:
        raise InputError(f"--image-size {H}x{W}: both sides must be divisible by {step_of} (the pyramids halve "
                         f"the picture); the nearest is {max(step_of, round(H / step_of) * step_of)}x"
                         f"{max(step_of, round(W / step_of) * step_of)}")
    return per_rank, micro, per_rank // micro


def open_run(args, rank, world):
    """-> (training set, validation set, run folder, p of each training picture). Raises InputError."""
    dataset, validation = (open_dataset(args.dataset, args.data_path, split, args.image_size, args.seed,
                                        args.offsets == "on") for split in ("train", "val"))
    run = Path(args.output_dir)
    try:
        run.mkdir(parents=True, exist_ok=True)
        open(run / "metrics.jsonl", "a").close()
    except OSError as error:
        raise InputError(f"--output-dir {run}: cannot be written ({error.strerror}); choose another") from None
    probabilities = torch.full((len(dataset),), 1 / len(dataset), dtype=torch.float64)
    if rank == 0 and args.sampling == "rare-class":  # one rank reads the label maps, the others wait for the result
        presence = class_presence(dataset, run / "class_presence.npz")
        probabilities = torch.from_numpy(sampling_probabilities(presence, dataset.unknown))
    if world > 1:
        dist.broadcast(probabilities, 0)  # over gloo, which waits half an hour for a large dataset
    return dataset, validation, run, probabilities.numpy()


def build_networks(args, dataset, probabilities, run, device, rank, world, say):
    """-> (generator, discriminator, features of Eq. 5 or None, the generator's options). Raises InputError for weights."""
    num_classes, networks = len(dataset.classes), PRESETS[args.preset][1]
    torch.manual_seed(args.seed)
    generator_options = dict(num_classes=num_classes, offset_channels=2 * dataset.has_instances,
                             **networks["generator"][args.generator])
    if args.generator == "dp-sims":
        generator_options.update(noise=args.noise, self_attention=args.self_attention == "on")
    elif args.generator == "dpgan":
        generator_options.update(concatenate_last=args.concatenate_last == "on")
    G = GENERATORS[args.generator](**generator_options)
    widths, contrastive = networks["discriminator"][args.discriminator], networks["contrastive"]
    weights = args.backbone_weights
    if weights == "self" and args.discriminator == "dp-sims":
        key = repr((dataset.fingerprint(), dataset.classes, args.seed, *args.image_size)).encode()
        weights = str(run / f"backbone_{args.backbone.replace(':', '_')}_{hashlib.sha256(key).hexdigest()[:8]}.pt")

    def build_discriminator():
        if args.discriminator == "oasis":
            return oasis.Discriminator(num_classes, **widths)
        if args.discriminator == "dpgan":
            return dpgan.Discriminator(num_classes, patch=args.patch, matched=args.matched, **widths)
        if args.backbone_weights == "self" and not Path(weights).is_file():
            say(f"pre-training {args.backbone} on the classes of {args.dataset}, {PRETRAIN_STEPS} steps, once", flush=True)
            pretrain_backbone(args.backbone, dataset, probabilities, Path(weights), args.seed, device, args.workers)
        return build_frozen(lambda: Discriminator(
            num_classes, args.backbone, weights, seed=args.seed, conditioning=args.conditioning, **widths),
            args.backbone, args.backbone_weights, "--backbone-weights")

    def build_contrastive():
        vgg_width = contrastive["vgg_width"] if args.vgg_weights == "random" else 1.0
        return build_frozen(lambda: ContrastiveFeatures(args.vgg_weights, vgg_width, contrastive["width"], args.seed),
                            "vgg19", args.vgg_weights, "--vgg-weights")
    D = rank_0_first(build_discriminator, rank, world)
    P = rank_0_first(build_contrastive, rank, world) if args.lambda_c > 0 else None
    G, D, P = (net and synchronise_batch_norm(net, device, world).to(device, memory_format=torch.channels_last)
               for net in (G, D, P))
    return G, D, P, generator_options


def train(args):
    device, rank, world = setup_distributed(args.device)
    say = print if rank == 0 else (lambda *_, **__: None)
    H, W = args.image_size
    networks = PRESETS[args.preset][1]
    per_rank, micro, accumulation = split_batch(args, world, step_of=max(
        2 ** (len(networks["generator"][args.generator]["widths"]) - 2),
        2 ** len(networks["discriminator"][args.discriminator].get("encoder_widths", DECODER_WIDTHS))))
    dataset, validation, run, probabilities = open_run(args, rank, world)
    num_classes = len(dataset.classes)
    if args.pretrain_backbone:
        if rank == 0 and not Path(args.pretrain_backbone).exists():
            pretrain_backbone(args.backbone, dataset, probabilities, Path(args.pretrain_backbone), args.seed, device,
                              args.workers)
        say(f"backbone:   {args.pretrain_backbone}")
        return leave_ranks() if world > 1 else None
    G, D, P, generator_options = build_networks(args, dataset, probabilities, run, device, rank, world, say)
    ema = copy.deepcopy(G).requires_grad_(False)
    if args.compile:
        # TRAP: not the rest of D: its spectral norm is stepped again before the backward pass of Eq. 3, which compiled
        # code (torch 2.15) does not allow.
        for net in filter(None, (G, D.backbone, P)):
            net.compile()
    G_parameters = [p for net in filter(None, (G, P)) for p in net.parameters() if p.requires_grad]
    D_parameters = [p for p in D.parameters() if p.requires_grad]
    optimiser_G, optimiser_D = (
        torch.optim.Adam(parameters, lr=lr, betas=(0.0, args.beta2), fused=True)
        for parameters, lr in ((G_parameters, args.lr), (D_parameters, args.lr_d or args.lr)))

    # ---- resume
    done, latest = 0, run / "latest.pt"
    identity = {**{name: getattr(args, name) for name in (
        "dataset", "model", "preset", "generator", "noise", "self_attention", "concatenate_last", "discriminator",
        "backbone", "conditioning", "patch", "matched")}, "classes": list(dataset.classes),
                "offset_channels": generator_options["offset_channels"],
                "frozen": [fingerprint(D), fingerprint(P)]}
    if latest.is_file():
        state = load_checkpoint(latest)
        done = resume(state, identity, latest, args, say, G=G, D=D, P=P, ema=ema,
                      optimiser_G=optimiser_G, optimiser_D=optimiser_D)
    if rank == 0:
        (run / "options.json").write_text(json.dumps(vars(args), indent=1))
        for log in ("metrics.jsonl", "scores.jsonl"):
            keep_steps_up_to(done, run / log)

    sampler = RareClassBatches(probabilities, args.batch_size, done, args.steps, args.seed, rank, world)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=args.workers,
                        pin_memory=device.type == "cuda", persistent_workers=args.workers > 0,
                        worker_init_fn=own_group)

    def to_device(batch):
        """One loader batch -> real (B, 3, H, W) in [-1, 1], label_map (B, H, W) int64, offsets or None."""
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        real = (batch["image"].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        return real, batch["label_map"].long(), batch.get("offsets")

    calibration = []  # the first training batches, kept as integers, for refresh_ema

    def calibration_batches():
        """(label_map, offsets, z) of the first training batches, this rank's share, for refresh_ema."""
        if not calibration:
            first = RareClassBatches(probabilities, args.batch_size, 0, EMA_BATCHES, args.seed, rank, world)
            for batch in batches_of(DataLoader(dataset, batch_sampler=first, num_workers=args.workers,
                                               worker_init_fn=own_group)):
                del batch["image"]
                calibration.append(batch)
        z_generator = torch.Generator().manual_seed(args.seed)
        for batch in calibration:
            z = torch.randn(world, per_rank, G.z_dim, generator=z_generator)[rank].to(device)
            batch = {k: v.to(device) for k, v in batch.items()}
            for i in range(0, per_rank, micro):
                yield (batch["label_map"][i:i + micro].long(),
                       batch["offsets"][i:i + micro] if "offsets" in batch else None, z[i:i + micro])

    def save(step):
        if rank == 0:
            save_atomically({"step": step, "identity": identity, "options": vars(args), "G": G.state_dict(),
                             "D": trained(D), "P": trained(P), "ema": ema.state_dict(),
                             "optimiser_G": optimiser_G.state_dict(),
                             "optimiser_D": optimiser_D.state_dict()}, latest)

    def save_ema(step, name, scores):
        if rank == 0:
            save_atomically({"step": step, "architecture": args.generator, "generator": generator_options,
                             "ema": ema.state_dict(), "dataset": args.dataset, "image_size": [H, W], "classes": list(dataset.classes),
                             "palette": dataset.palette.tolist(), "unknown": dataset.unknown, "scores": scores}, run / name)

    def picture(step):
        columns = strip_columns(G, ema, D, validation, device)
        if rank == 0:
            for name in (f"strip_{step:07d}.png", "strip.png"):
                draw_page(columns, run / name)

    banner(say, args, device, world, micro, accumulation, G, D, P, run, done, len(dataset))
    if done >= args.steps:
        say(f"step {done} is reached already; --steps {2 * done} would go on (see --lr-decay-steps)")
        return finish(say, run, world)
    weigh = {"balanced": class_weights, "inverse": dpgan.class_weights, "none": equal_weights}[args.class_weights]
    stopping = StopOnSignals(world)
    best = float("inf")
    if args.evaluate_every:
        import evaluate  # it imports this file, and is wanted here only
        inception, distance, _, key = rank_0_first(
            lambda: evaluate.load_inception(args.inception_weights, device), rank, world)
        reference = evaluate.dataset_reference(validation, inception, key, device, rank, world, cache=run)
        best = min((line[distance] for line in read_lines_of(run / "scores.jsonl") if distance in line), default=best)
    pixels, log, busy_since = H * W, [], time.time()
    nets = {name: net for name, net in (("G", G), ("D", D), ("P", P)) if net is not None}
    progress = tqdm(total=args.steps, initial=done, desc="training", dynamic_ncols=True,
                    disable=None if rank == 0 else True)
    batches = batches_of(loader)
    for step in range(done + 1, args.steps + 1):
        try:
            whole = to_device(next(batches))
        except InputError:  # a file that cannot be read: keep what was learnt
            if rank == 0 and step > done + 1:
                check_finite(log, step - 1, nets, latest)
                save(step - 1)
            raise
        logs_now = step % args.log_every == 0 or step == args.steps
        lr = args.lr * lr_factor(step, *args.lr_decay_steps)
        optimiser_G.param_groups[0]["lr"] = lr
        optimiser_D.param_groups[0]["lr"] = (args.lr_d or args.lr) * lr_factor(step, *args.lr_decay_steps)
        # noise of the whole global batch, on every rank alike; this rank takes its share
        step_generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        z = torch.randn(2, args.batch_size, G.z_dim, generator=step_generator)
        mine = slice(rank * per_rank, (rank + 1) * per_rank)
        z_1, z_2 = z[:, mine].to(device, non_blocking=True)
        if args.lambda_lm > 0:  # LabelMix: a flip for each image and class
            flips = torch.rand(args.batch_size, num_classes, generator=step_generator)[mine].to(device) < 0.5
        counts = torch.zeros(num_classes, dtype=torch.int64, device=device)  # n_c of the whole global batch
        counts.scatter_add_(0, whole[1].flatten(), torch.ones_like(whole[1].flatten()))
        if world > 1:
            dist.all_reduce(counts)
        alpha = weigh(counts, dataset.unknown)                            # (C,)
        parts = [slice(i, i + micro) for i in range(0, per_rank, micro)]
        values, made = {}, []

        # ==== (1) Generator: minimise  lambda_GAN L_G + lambda_C L_NCE + lambda_D L_Div     (Eq. 4, 5, 6)
        # PAPER: order of the two steps not said. / HERE: G first; D then learns from the same pictures.
        # WHY: neither they nor their backbone features are computed twice.
        for p in D_parameters:
            p.requires_grad_(False)
        optimiser_G.zero_grad()
        for part in parts:
            real, label_map, offsets = (t if t is None else t[part] for t in whole)
            # PAPER: Eq. 6 is an expectation over label maps. / HERE: over every fourth of the batch. / WHY: the
            # same expectation for a quarter of the second generator pass (--diversity-every 1 takes all).
            n, first = len(label_map), rank * per_rank + part.start       # first: its place in the global batch
            pair = slice(-first % args.diversity_every, None if args.lambda_d > 0 else 0, args.diversity_every)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                image, features = G(torch.cat([label_map, label_map[pair]]),
                                    torch.cat([z_1[part], z_2[part][pair]]),
                                    None if offsets is None else torch.cat([offsets, offsets[pair]]),
                                    return_features=True)
                fake = image[:n]                                          # (n, 3, H, W)
                fake_features = D.backbone and D.backbone(fake)
                fake_logits, scores, matched = D(fake, fake_features, return_all=True)  # (n, C + 1, H, W), [..], [..]
                contrastive, anchors = [], []
                if args.lambda_c > 0:
                    contrastive, anchors = contrastive_loss(
                        P, fake, real, step_generator, args.anchors, args.negatives, args.tau)
            diversity = fake_logits.new_zeros(())
            if len(image) > n:  # this part's share of the mean over the pairs of the global batch
                share = (len(image) - n) * world * accumulation / len(range(0, args.batch_size, args.diversity_every))
                diversity = share * diversity_loss(features[:n][pair], features[n:], z_1[part][pair], z_2[part][pair],
                                                   args.tau_div)
            terms = objective(generator_loss(fake_logits, label_map, alpha, args.gamma), contrastive, diversity,
                              pixels, anchors, args.lambda_gan, args.lambda_c, args.lambda_d, args.reduction)
            # L_G = pixel term - 1/L sum_i E min(-1 + D_p^i(psi^i(G)), 0) + L_fm             (DP-GAN Eq. 7)
            if args.lambda_patch > 0:
                terms["patch"] = args.lambda_patch * dpgan.patch_generator_loss(scores)
            if args.lambda_fm > 0:
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                    wanted = D(real, return_all=True)[2]
                terms["feature_matching"] = args.lambda_fm * dpgan.feature_matching_loss(wanted, matched)
            if logs_now:
                add(values, gradient_norms(terms, image, features), accumulation)
            (sum(terms.values()) / accumulation).backward()
            add(values, {f"G_{name}": term for name, term in terms.items()}, accumulation)
            made.append((fake.detach(), fake_features and [f.detach() for f in fake_features]))
        average_gradients(G_parameters, world)
        norm_G = clip(G_parameters, args.clip_grad, logs_now)
        optimiser_G.step()

        # ==== (2) Discriminator: minimise  L_D                                                   (Eq. 3)
        for p in D_parameters:
            p.requires_grad_(True)
        optimiser_D.zero_grad()
        for part, (fake, fake_features) in zip(parts, made):
            real, label_map = whole[0][part], whole[1][part]
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                real_logits, real_scores, _ = D(real, return_all=True)      # (n, C + 1, H, W)
                fake_logits, fake_scores, _ = D(fake, fake_features, return_all=True)
                if args.lambda_lm > 0:
                    mask = oasis.label_mix_mask(label_map, flips[part])   # (n, 1, H, W), True is real
                    mixed_logits = D(oasis.label_mix(real, fake, mask))
            L_D = discriminator_loss(real_logits, fake_logits, label_map, alpha, args.gamma,
                                     args.label_smoothing) / pixels
            # L_pixel + L_ms + lambda_LM L_LM                                                (DP-GAN Eq. 9)
            # PAPER: L_pixel is a sum over pixels, the others are means. / HERE: divided by H*W, in L_G, too. / WHY: as
            # printed it would be 65,536 times as heavy; its code has means.
            if args.lambda_patch > 0:
                L_ms = args.lambda_patch * dpgan.patch_discriminator_loss(real_scores, fake_scores)
                L_D = L_D + L_ms
                add(values, {"D_patch": L_ms}, accumulation)
            if args.lambda_lm > 0:
                L_LM = args.lambda_lm * oasis.label_mix_loss(mixed_logits, real_logits, fake_logits, mask)
                L_D = L_D + L_LM
                add(values, {"D_label_mix": L_LM}, accumulation)
            (L_D / accumulation).backward()
            add(values, {"D": L_D}, accumulation)
            if logs_now:
                known = alpha[label_map] > 0
                right = (real_logits.argmax(dim=1) == label_map) & known
                add(values, {"D_accuracy_real": right.sum() / known.sum().clamp_min(1),
                             "D_accuracy_fake": (fake_logits.argmax(dim=1) == num_classes).float().mean()},
                    accumulation)
        average_gradients(D_parameters, world)
        norm_D = clip(D_parameters, args.clip_grad, logs_now)
        optimiser_D.step()

        # ==== (3) Average the generator
        update_ema(ema, G, step, args.ema_decay)

        # ---- once in a while: log, picture, checkpoint
        log.append(values)  # tensors on the device: nothing has waited for it so far
        progress.update()
        stop = stopping.now()
        saves_now, keeps_now, draws_now, scores_now = (  # after a signal there may be seconds only: latest.pt alone
            step == args.steps or (every and step % every == 0 and not stop)
            for every in (args.save_every, args.ema_every, args.picture_every, args.evaluate_every))
        scores_now = scores_now and args.evaluate_every > 0
        saves_now = saves_now or stop
        if logs_now or saves_now or keeps_now or draws_now or scores_now:
            check_finite(log, step, nets, latest)
        if logs_now:
            values.update(G_gradient=norm_G, D_gradient=norm_D)
            gates = [p.detach().abs() for name, p in G.named_parameters() if name.endswith("eta")]
            if gates:
                values["eta"] = torch.stack(gates).mean()
            line = summarise(log, step, world, device)
            seconds = (time.time() - busy_since) / len(log)
            line.update(lr=lr, seconds_per_step=seconds, images_per_second=args.batch_size / seconds,
                        memory_gib=peak_memory(device))
            if rank == 0:
                with open(run / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
                report(line, args.steps, progress)
            log, busy_since = [], time.time()
        paused = time.time()
        if draws_now or keeps_now or scores_now:
            refresh_ema(ema, G, calibration_batches)
        if draws_now:
            picture(step)
        scores = {}
        if scores_now:
            scores = {distance: evaluate.score_generator(ema, validation, inception, reference, device, rank, world)}
            say(f"step {step}: {distance} {scores[distance]:.3f}" + (", the best so far" if scores[distance] < best else ""))
            if rank == 0:
                with open(run / "scores.jsonl", "a") as file:
                    file.write(json.dumps({"step": step, **scores}) + "\n")
            if scores[distance] < best:
                best = scores[distance]
                save_ema(step, "ema_best.pt", scores)
        if keeps_now:
            save_ema(step, f"ema_{step:07d}.pt", scores)
        if saves_now:  # last, because latest.pt is what says that a step was reached
            save(step)
        busy_since += time.time() - paused  # pictures and checkpoints are not training time
        if stop:
            progress.close()
            say(f"stopped at step {step} and saved; run the same command again to go on")
            break
    progress.close()
    finish(say, run, world)


def main(argv):
    """train(), or for --model iidm the loop of baselines/iidm.py, which is another one and has other options."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--model")
    if first.parse_known_args(argv)[0].model == "iidm":
        iidm.train(iidm.parse_options(argv))
    else:
        train(parse_options(argv))


def finish(say, run, world):
    newest = sorted(run.glob("ema_[0-9]*.pt"))
    say(f"picture:    {run / 'strip.png'}\ncheckpoint: {newest[-1] if newest else run / 'latest.pt'}")
    if world > 1:
        leave_ranks()


def leave_ranks():
    """End the process group. TRAP: torch 2.6 hangs in there if gloo's threads still have to free a tensor, for which they
    need the interpreter, so it is given to them first."""
    dist.barrier()
    time.sleep(0.2)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        print("train.py: the device is out of memory; lower --micro-batch-size (images per rank at once; the batch "
              "stays the same), or --image-size", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        print(f"train.py: {error}; what was saved before is whole. Make room or choose another --output-dir, "
              f"and run the same command again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
