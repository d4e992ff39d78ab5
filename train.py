"""Train DP-SIMS (Sec. 3.3, 4.1): one file for a laptop, one GPU and many.

    python train.py --dataset toy                                        laptop, minutes, no download
    python train.py --dataset folder --data-path DIR                     one GPU, your own pictures
    torchrun --nproc_per_node 8 train.py --dataset ade20k --data-path DIR

Read in this order:

    generator_losses       what G minimises in a step                              (Eq. 4, 5, 6)
    discriminator_losses   what D minimises in a step                              (Eq. 3)
    loop                   batch, G's step, D's step, average; every so many steps a log, a picture, a checkpoint
    train                  what the loop needs before it starts: data, networks, optimisers, the last checkpoint

Run the same command again to go on where it stopped. Everything random is a function of (seed, step): a run that was
interrupted ends where an uninterrupted one ends, on a CPU bit for bit. README says what a run folder holds.

    batch           a dict of tensors, first dimension B; a part of it is as many pictures as fit into memory at once
      real          (B, 3, H, W) in [-1, 1]                label_map       (B, H, W) integers 0..C-1
      z_1, z_2      (B, d_z), noise; z_2 for Eq. 6 alone   offsets         (B, 2, H, W), only with instances
"""
import copy
import os
import sys
from argparse import Namespace
from collections import namedtuple
from functools import partial

import support  # noqa: F401, before torch, which takes seconds
import torch
from tqdm import tqdm

from data import DATASETS, open_dataset, training_batches, training_probabilities
from discriminator import BACKBONES, CONDITIONINGS, STRIDES, Discriminator
from generator import Generator, z_of_seed
from losses import (ContrastiveFeatures, class_weights, contrastive_loss, discriminator_loss, diversity_loss,
                    equal_weights, generator_loss)
from metrics.fid import open_scoring, score_generator, without_download
from sample import conditions, generate, noise
from support import logs, profile, runs
from support.errors import InputError, run_script
from support.optimisation import (clip, compile_networks, refresh_ema, set_lr, trained_parameters, update_ema,
                                  update_spectral_norms)
from support.options import (AT_LEAST_0, COUNT, POSITIVE, SHARE, WEIGHT, add_data_options, add_training_options,
                             check_sides, first_look, new_parser, parse_training)
from support.ranks import (Ranks, average_gradients, count_classes, parts_of, rank_0_first, setup_ranks, share,
                           split_batch, synchronise_batch_norm, with_noise)
from support.weights import LITE, build_frozen, find_weights, needed_weights, pretrain_backbone, self_trained_file

# The paper's numbers (Sec. 4.1) and, where it is silent, our choices (docs/departures.md).
PAPER = dict(
    image_size="256", steps=63_000, batch_size=64, lr=1e-3, lr_d=0.0, beta2=0.99, noise="cross-attention",
    self_attention="on", growth="nearest", backbone="convnext_large", backbone_weights="imagenet", gamma=2.0,
    conditioning="sigmoid-bn", vgg_weights="imagenet", contrastive_features="vgg19", lambda_gan=1.0, lambda_c=100.0,
    lambda_d=10.0, class_weights="balanced", label_smoothing=0.1, tau=0.3, negatives=128, anchors=256, tau_div=1.0,
    reduction="sum", diversity_of="features", diversity_every=4, ema_decay=0.9999, lr_decay_steps=[0, 0],
    clip_grad=0.0, sampling="rare-class", offsets="on", log_every=50, workers=min(8, os.cpu_count() or 1),
    picture_every=5000, save_every=0, ema_every=5000)
# PAPER: no training length. / HERE: OASIS's 200 epochs of ADE20K (20,210 images, 64 a step: the 63,000 above), 100 of
# COCO-Stuff; Cityscapes 60,000 steps, as its 200 epochs are only 9,300. / WHY: Table 1 compares with OASIS.
OF_DATASET = {"coco_stuff": dict(steps=185_000), "cityscapes": dict(steps=60_000, image_size="256x512")}
# Found by measuring (RESULTS.md): toy scenes in a quarter of an hour on two CPU cores; photos in half an hour.
TOY = dict(
    image_size="64", steps=1600, batch_size=4, growth="bilinear", backbone="resnet18", backbone_weights="self",
    vgg_weights="random", anchors=16, lambda_d=1.0, tau_div=0.4, ema_decay=0.995, clip_grad=5.0, ema_every=0,
    lr_decay_steps=[960, 1600], workers=int((os.cpu_count() or 1) > 2), picture_every=100, save_every=200)
LAPTOP = dict(TOY, image_size="128", steps=1500, lr_decay_steps=[900, 1500], picture_every=200,
              growth="nearest", backbone="efficientnet_lite1", backbone_weights="imagenet", vgg_weights="imagenet",
              contrastive_features="efficientnet_lite2", lambda_c=1.0, reduction="mean", diversity_of="picture",
              lambda_d=10.0, tau_div=0.1, conditioning="none")
PRESETS = {"paper": {}, "toy": TOY, "laptop": LAPTOP}
SMALL_GENERATOR = dict(widths=(96, 64, 32, 32, 32), stem_channels=16, label_channels=16, noise_tokens=8, noise_width=32,
                       padding="reflect")  # the networks of toy and laptop
SMALL_DISCRIMINATOR = dict(decoder_widths=(128, 96, 64, 48, 32), full_resolution_width=32)
SMALL_CONTRASTIVE = dict(vgg_share=0.25, width=64)
PRETRAIN_STEPS, PRETRAIN_BATCH = 150, 32  # --backbone-weights self
EMA_BATCHES, STRIP_ROWS = 16, 6  # training batches that give the average its batch-norm statistics; rows of strip.png


# ------------------------------------------------------------------------------------------ the two steps
# PAPER: the order of the two steps is not said. / HERE: G first; D then learns from the pictures that G drew before G
# was updated. / WHY: pictures and their backbone features are computed once.

def generator_losses(G, D, P, batch, alpha, rng, args):
    """(1) The generator minimises  lambda_GAN L_G + lambda_C L_NCE + lambda_D L_Div  (Sec. 3.3).

    P: the VGG features and projections of Eq. 5, or None. alpha (C,): class weights. rng: a CPU torch.Generator.
    -> {term: weighted scalar}, image (B + extra, 3, H, W), their G^f, and the backbone features of the first B.
    """
    real, label_map, z_1, z_2 = batch["real"], batch["label_map"], batch["z_1"], batch["z_2"]
    B, pixels = len(label_map), label_map[0].numel()
    # PAPER: which pictures of a batch get a second z is not said. / HERE: every fourth one. / WHY: the same mean of
    # Eq. 6, at a quarter of the cost. The extra pictures count in G's batch norm.
    twice = slice(0, B if args.lambda_d > 0 else 0, args.diversity_every)  # pictures 0, 4, 8, ...; none without Eq. 6
    offsets = torch.cat([batch["offsets"], batch["offsets"][twice]]) if "offsets" in batch else None
    z = torch.cat([z_1, z_2[twice]])                                      # (B + extra, d_z)
    image, G_f = G(torch.cat([label_map, label_map[twice]]), z, offsets, return_features=True)
    fake = image[:B]                                                      # (B, 3, H, W)
    fake_features = D.features(fake)                                      # F_1 ... F_4; the gradient goes through them
    fake_logits = D(fake, fake_features)                                  # (B, C + 1, H, W)
    # PAPER: "a weighted average of three loss functions"; Eq. 3 and 4 are sums over pixels, Eq. 5 has one anchor.
    # HERE: Eq. 3, 4 and 5 are sums, each divided by H*W of the picture. The ratio in Eq. 6 is one of means: the paper's
    # ratio divided by C_f H W / d_z, which is H*W at full size, where C_f = d_z = 64. / WHY: without clipping, a factor
    # common to all changes nothing in Adam. With means everywhere lambda_C = 100 swamps L_G (RESULTS.md).
    terms = {"gan": args.lambda_gan * generator_loss(fake_logits, label_map, alpha, args.gamma) / pixels}     # (Eq. 4)
    if args.lambda_c > 0:
        L_NCE = contrastive_loss(P, fake, real, rng, args.anchors, args.negatives, args.tau, args.reduction)  # (Eq. 5)
        terms["contrastive"] = args.lambda_c * (L_NCE / pixels if args.reduction == "sum" else L_NCE)
    if args.lambda_d > 0:
        apart = G_f if args.diversity_of == "features" else image         # ours: image, which G^f can stay behind
        terms["diversity"] = args.lambda_d * diversity_loss(                                                  # (Eq. 6)
            apart[:B][twice], apart[B:], z_1[twice], z_2[twice], args.tau_div)
    return terms, image, G_f, fake_features


def discriminator_losses(D, batch, fake, fake_features, alpha, args):
    """(2) The discriminator minimises  L_D  (Eq. 3).

    fake (B, 3, H, W), fake_features: of generator_losses, detached.
    -> {term: scalar}, real_logits, fake_logits (B, C + 1, H, W)
    """
    real_logits = D(batch["real"])
    fake_logits = D(fake, fake_features)
    L_D = discriminator_loss(real_logits, fake_logits, batch["label_map"], alpha, args.gamma, args.label_smoothing)
    return {"pixels": L_D / batch["label_map"][0].numel()}, real_logits, fake_logits                          # (Eq. 3)


# ----------------------------------------------------------------------------------------------- the loop

def loop(args, system, run, ranks, stopping, done):
    """Steps done + 1 ... args.steps, on every rank. system: the functions of DP_SIMS below, or those of a baseline.
    stopping: a ranks.StopOnSignals. -> the signal that ended the loop, or 0."""
    G, D, P, ema, device, dataset, C = run.G, run.D, run.P, run.ema, ranks.device, run.dataset, len(run.dataset.classes)
    G_parameters, D_parameters = trained_parameters(G, P), trained_parameters(D)  # without backbone and VGG
    nets, (micro, accumulation) = {"G": G, "D": D, "P": P}, split_batch(args, ranks)
    draws = runs.draws_of(args)  # other ones after a rollback
    loader = training_batches(dataset, run.probabilities, done, args.steps, draws, ranks)
    history, for_statistics, speed = [], [], profile.Speed(nets, args, ranks)
    progress = tqdm(total=args.steps, initial=done, desc="training", dynamic_ncols=True, disable=ranks.rank > 0 or None)
    for step in speed.steps(range(done + 1, args.steps + 1)):
        due = stopping.begin(step, runs.what_is_due(step, args))
        try:
            batch = runs.next_batch(loader, stopping)
        except InputError:  # a file that cannot be read: keep what was learnt
            runs.save_learnt(run, step - 1, done, history, nets, args, ranks, stopping)
            raise
        rng = torch.Generator().manual_seed(draws.seed * 1_000_003 + step)
        batch.update(share(system.draw_noise(args.batch_size, G.z_dim, C, rng), ranks))
        counts = count_classes(batch["label_map"], C, ranks.world)        # (C,) n_c of the global batch
        alpha = system.weigh(counts, dataset.unknown, args)               # (C,)
        lr = set_lr(run.optimiser_G, args.lr, step, args.lr_decay_steps)
        set_lr(run.optimiser_D, args.lr_d or args.lr, step, args.lr_decay_steps)
        update_spectral_norms(G, D)                                       # all passes of a step see one weight
        parts, values, made = parts_of(batch, micro), {}, []

        # ==== (1) Generator: minimise  lambda_GAN L_G + lambda_C L_NCE + lambda_D L_Div     (Eq. 4, 5, 6)
        # Moves G and the projections P of Eq. 5. D's weights are frozen here, but the gradient passes through D and its
        # backbone to the picture. system.generator_losses: the one above, or a baseline's.
        D.requires_grad_(False)
        run.optimiser_G.zero_grad()
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                terms, image, G_f, fake_features = system.generator_losses(G, D, P, part, alpha, rng, args)
            if "log" in due:
                logs.add(values, logs.gradient_norms(terms, image, G_f), accumulation)
            (sum(terms.values()) / accumulation).backward()
            logs.add(values, {f"G_{name}": term for name, term in terms.items()}, accumulation)
            # the pictures with z_1 alone; a baseline's D has no backbone, and so no features
            made.append((image[:micro].detach(), fake_features and [f.detach() for f in fake_features]))
        average_gradients(G_parameters, ranks.world)
        norm_G = clip(G_parameters, args.clip_grad, "log" in due)
        run.optimiser_G.step()

        # ==== (2) Discriminator: minimise  L_D                                                   (Eq. 3)
        # Moves D's trained part, on the pictures that G drew in (1), before its update; they are detached.
        for p in D_parameters:
            p.requires_grad_(True)
        run.optimiser_D.zero_grad()
        for part, (fake, fake_features) in zip(parts, made):
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                terms, *logits = system.discriminator_losses(D, part, fake, fake_features, alpha, args)
            L_D = sum(terms.values())
            (L_D / accumulation).backward()
            logs.add(values, {"D": L_D, **{f"D_{name}": term for name, term in terms.items()}}, accumulation)
            if "log" in due:
                logs.add(values, logs.accuracies(*logits, part["label_map"], alpha), accumulation)
        average_gradients(D_parameters, ranks.world)
        norm_D = clip(D_parameters, args.clip_grad, "log" in due)
        run.optimiser_D.step()

        # ==== (3) Average the generator
        update_ema(ema, G, step, args.ema_decay)

        # ---- every so many steps: log, picture, score, checkpoint
        history.append(values)  # tensors that stay on the device until a log line is due
        progress.update()
        stop = stopping.now()
        if stop and step < args.steps:  # the process may be killed within seconds
            due = due & {"log"} | {"save"}
        if due:
            logs.check_finite(history, step, nets, run.folder / "latest.pt", stopping.agree)
        if "log" in due:
            values.update(G_gradient=norm_G, D_gradient=norm_D, **logs.mean_gate(G))
            logs.write_metrics(history, step, {"lr": lr}, speed, args, run.folder, progress, ranks)
            history = []
        speed.pause()
        if "save" in due:  # first: no picture that cannot be read, and no kill while scoring, costs a step
            runs.save(run, step, args, ranks)
        look(run, step, due, for_statistics, args, ranks)
        speed.go_on()  # pictures and checkpoints are not training time
        if stop:
            break
    progress.close()
    return stop


def look(run, step, due, for_statistics, args, ranks):
    """Picture, score and kept average, where they are due. for_statistics: a list for what is read once and kept."""
    G, ema, micro, scores = run.G, run.ema, split_batch(args, ranks)[0], {}
    if due & {"picture", "score", "average"}:  # the average is about to be used: its batch-norm statistics are measured
        if not for_statistics:
            batches = training_batches(run.dataset, run.probabilities, 0, EMA_BATCHES, args, ranks, workers=0)
            for_statistics += with_noise(batches, G.z_dim, micro, args, ranks)
        refresh_ema(ema, G, ([t if t is None else t.to(ranks.device) for t in some] for some in for_statistics))
    if "score" in due:
        scores = score_generator(lambda samples, maps: generate(
            ema, *conditions(samples), noise(maps, 0, G.z_dim), ranks.device), run.validation, run.scoring, ranks)
        runs.keep_best(run, step, scores, args, ranks)
    if "average" in due:
        runs.save_average(run, f"ema_{step:07d}.pt", step, scores, args, ranks)
    if "picture" in due:
        runs.draw_strip(run, [z_of_seed(i, G.z_dim) for i in range(2 * STRIP_ROWS)], step, ranks)


# --------------------------------------------------------------------------------------- before the loop

# The functions in which DP-SIMS and the baselines differ, and the options that a resumed run cannot change.
System = namedtuple(
    "System", "title build_networks draw_noise weigh generator_losses discriminator_losses fixed_options")


def train(args, system):
    """Everything that main does, on every rank -> the exit code. Raises InputError."""
    ranks = setup_ranks(args.device, fast=True)
    micro, _ = split_batch(args, ranks)
    if args.lambda_d > 0 and micro % args.diversity_every:
        raise InputError(f"--diversity-every {args.diversity_every}: the pictures in memory at once, {micro}, must be "
                         f"a multiple of it; give 1, or another --micro-batch-size")
    dataset, validation, folder, probabilities = open_run(args, ranks, needed_weights(args))
    G, D, P, architecture, options = system.build_networks(args, dataset, probabilities, folder, ranks)
    G, D, P = (net and synchronise_batch_norm(net, ranks).to(ranks.device, memory_format=torch.channels_last)
               for net in (G, D, P))
    adam = partial(torch.optim.Adam, lr=args.lr, betas=(0.0, args.beta2), fused=True)
    optimiser_G, optimiser_D = adam(trained_parameters(G, P)), adam(trained_parameters(D))
    scoring = open_scoring(validation, args.inception_weights, folder, ranks) if args.evaluate_every else None
    identity = runs.identity_of(args, system.fixed_options, dataset, D, P)
    run = runs.Run(folder, dataset, validation, probabilities, G, D, P, copy.deepcopy(G).requires_grad_(False),
                   optimiser_G, optimiser_D, architecture, options, identity, scoring)
    done = runs.resume(run, args, ranks)
    logs.banner(system.title, logs.describe(G, D, P, args), args, ranks, folder, done, len(dataset))
    if args.compile:
        compile_networks(G, D, P)
    look(run, done, runs.missed(run, done, args, ranks), [], args, ranks)
    stopped = runs.go_on(partial(loop, args, system, run, ranks), done, run, args, ranks)
    return runs.finish(folder, ranks, stopped)


def open_run(args, ranks, weights=()):
    """-> (training set, validation set, run folder, p of each training picture (N,)). Raises InputError."""
    dataset, validation = (open_dataset(args.dataset, args.data_path, split, args.image_size, args.seed,
                                        args.offsets == "on") for split in ("train", "val"))
    rank_0_first(lambda: find_weights(weights), ranks)
    folder = runs.open_folder(args, ranks)
    probabilities = training_probabilities(dataset, args.sampling, folder / "class_presence.npz", ranks)
    return dataset, validation, folder, probabilities


def draw_noise(batch_size, z_dim, num_classes, rng):
    """The noise of the whole global batch, on every rank alike: z_1, z_2 (batch_size, d_z)."""
    return dict(zip(("z_1", "z_2"), torch.randn(2, batch_size, z_dim, generator=rng)))


def weigh(label_counts, unknown, args):
    """alpha_c of Eq. 3 and 4, (C,)."""
    return (class_weights if args.class_weights == "balanced" else equal_weights)(label_counts, unknown)


def build_networks(args, dataset, probabilities, folder, ranks):
    """-> G, D, P, the name of G's architecture and G's options. Raises InputError for weights that do not fit."""
    check_sides(args.image_size, STRIDES[-1], split_batch(args, ranks)[0] * ranks.world)
    torch.manual_seed(args.seed)
    G, options = build_generator(args, dataset)
    D = build_discriminator(args, dataset, probabilities, folder, ranks)
    return G, D, build_contrastive(args, ranks), "dp-sims", options


def build_generator(args, dataset):
    options = dict(num_classes=len(dataset.classes), offset_channels=2 * dataset.has_instances, noise=args.noise,
                   self_attention=args.self_attention == "on", growth=args.growth)
    options.update({} if args.preset == "paper" else SMALL_GENERATOR)
    return Generator(**options), options


def build_discriminator(args, dataset, probabilities, folder, ranks):
    """D on its frozen backbone, which --backbone-weights self pre-trains first, once. Raises InputError."""
    C, weights = len(dataset.classes), args.backbone_weights
    widths = {} if args.preset == "paper" else SMALL_DISCRIMINATOR
    if weights == "self":
        key = dataset.fingerprint(), dataset.classes, args.seed, *args.image_size
        weights = self_trained_file(folder, args.backbone, *key)
        rank_0_first(lambda: pretrain(args, dataset, probabilities, weights, ranks), ranks)
    return build_frozen(
        lambda: Discriminator(C, args.backbone, str(weights), seed=args.seed, conditioning=args.conditioning, **widths),
        args.backbone, args.backbone_weights, "--backbone-weights", ranks)


def build_contrastive(args, ranks):
    """The features of Eq. 5, or None without it. Raises InputError for weights that do not fit."""
    options = {} if args.preset == "paper" else SMALL_CONTRASTIVE
    return None if args.lambda_c == 0 else build_frozen(
        lambda: ContrastiveFeatures(args.vgg_weights, seed=args.seed, network=args.contrastive_features, **options),
        args.contrastive_features, args.vgg_weights, "--vgg-weights", ranks)


def pretrain(args, dataset, probabilities, path, ranks):
    """--backbone-weights self: the backbone learns which classes a picture contains, unless `path` is there."""
    own = Namespace(**{**vars(args), "batch_size": PRETRAIN_BATCH})
    batches = training_batches(dataset, probabilities, 0, PRETRAIN_STEPS, own, Ranks(ranks.device))
    pretrain_backbone(args.backbone, len(dataset.classes), batches, PRETRAIN_STEPS, path, args.seed, ranks,
                      args.amp == "bf16")


DP_SIMS = System("DP-SIMS", build_networks, draw_noise, weigh, generator_losses, discriminator_losses,
                 ("dataset", "model", "preset", "noise", "self_attention", "growth", "backbone", "conditioning"))


# ----------------------------------------------------------------------------------------------- options

def make_parser(description, defaults, class_weights=("balanced", "none")):
    """The options of train.py; the baselines add theirs."""
    parser = new_parser(description, "Defaults shown are those of the --dataset and --preset on this command line.")
    add = add_data_options(parser, DATASETS).add_argument
    add("--offsets", choices=("on", "off"), help="instance offsets as input, where there are instances")
    add = parser.add_argument_group("networks").add_argument
    add("--preset", choices=PRESETS, help="sizes of the networks, and every default below")
    add("--noise", choices=("cross-attention", "concatenation"), help="how z enters the generator (Table 6)")
    add("--self-attention", choices=("on", "off"), help="in the label pyramid (Table 6)")
    add("--growth", choices=("nearest", "bilinear"), help="of the picture from scale to scale")
    add("--backbone", metavar="NAME", help=f"{', '.join(BACKBONES)}, or timm:NAME (pip install timm)")
    add("--conditioning", choices=CONDITIONINGS, help="of the backbone's features (Table 5)")
    add("--backbone-weights", metavar="WEIGHTS", help="imagenet (downloaded), self (made here), random, or a file")
    add("--contrastive-features", choices=("vgg19", *LITE), help="network of Eq. 5; the paper's is VGG-19")
    add("--vgg-weights", metavar="WEIGHTS", help="of that network: imagenet, random, or a file of torchvision's vgg19")
    add = parser.add_argument_group("losses (Sec. 3.3)").add_argument
    add("--lambda-gan", type=WEIGHT, help="weight of Eq. 4")
    add("--lambda-c", type=WEIGHT, help="weight of the contrastive loss, Eq. 5; 0 leaves it out")
    add("--lambda-d", type=WEIGHT, help="weight of the diversity loss, Eq. 6; 0 leaves it out")
    add("--class-weights", choices=class_weights, help="alpha_c: by frequency, or 1 (Table 8)")
    add("--gamma", type=WEIGHT, help="exponent of the focal loss; 0 is cross-entropy (Table 8)")
    add("--label-smoothing", type=SHARE, help="epsilon, on the real pixels of Eq. 3 (Table 6)")
    add("--tau", type=POSITIVE, help="temperature of Eq. 5 (Table 7)")
    add("--negatives", type=COUNT, help="N of Eq. 5")
    add("--anchors", type=COUNT, help="anchors per scale and image for Eq. 5")
    add("--tau-div", type=WEIGHT, help="cut-off of Eq. 6; raise it if two z look the same")
    add("--diversity-of", choices=("features", "picture"), help="Eq. 6 is of G^f; pictures differ more (RESULTS.md)")
    add("--diversity-every", type=COUNT, metavar="N", help="every Nth picture gets a second z, for Eq. 6; 1 = all")
    add("--reduction", choices=("sum", "mean"), help="of Eq. 5: sum / (H*W), or mean: --lambda-c then weighs far more")
    add = add_training_options(parser).add_argument
    add("--lr-d", type=WEIGHT, help="learning rate of the discriminator; 0 = --lr, as in the paper")
    add("--beta2", type=SHARE, help="of Adam; beta1 is 0")
    add = parser.add_argument_group("scores on the way").add_argument
    add("--evaluate-every", type=AT_LEAST_0, default=0, help="steps between scores, which ema_best.pt needs; 0 = never")
    add("--inception-weights", help="for that: download (FID), lite0, random, or a file")
    parser.set_defaults(**defaults)
    return parser


def defaults_of(known):
    """The numbers that the command line does not give: the dataset's or the toy preset's, over the paper's."""
    defaults = dict(PAPER, preset=known.preset, model="dp-sims", output_dir=f"runs/{known.dataset}",
                    inception_weights=without_download() if known.dataset == "toy" else "download")
    defaults.update(PRESETS.get(known.preset) or OF_DATASET.get(known.dataset, {}))
    # PAPER: "for pre-trained Swin backbones, we found it necessary to use gradient clipping", no value.
    # HERE: to a norm of 1. / WHY: the usual value.
    return {**defaults, "clip_grad": 1.0} if "swin" in (known.backbone or "") else defaults


def parse_options(argv):
    """argv -> argparse.Namespace. Raises InputError."""
    return check(parse_training(make_parser("Train DP-SIMS, or go on with it.", defaults_of(first_look(argv))), argv))


def check(args):
    """-> args. Raises InputError for a backbone that is not there."""
    if args.backbone not in BACKBONES and not args.backbone.startswith("timm:"):
        raise InputError(f"--backbone {args.backbone} is unknown; choose from {', '.join(BACKBONES)}, or timm:NAME")
    return args


if __name__ == "__main__":
    run_script("train.py", lambda: train(parse_options(sys.argv[1:]), DP_SIMS))
