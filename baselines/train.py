"""Train OASIS, DP-GAN, and the mixtures of the tables, by train.py's loop.

    python -m baselines.train --model oasis --dataset toy
    python -m baselines.train --model dp-sims --discriminator oasis --dataset toy       a row of Table 6
    torchrun --nproc_per_node 8 -m baselines.train --model dpgan --dataset ade20k --data-path DIR

The same options as train.py, and those of the baselines' networks and losses. `python -m tables.rows` lists the rows.
"""
import argparse
import sys

import torch

import train
from baselines import dpgan, oasis
from losses import discriminator_loss, generator_loss
from sample import GENERATORS as OWN
from support.errors import InputError, run_script
from support.options import WEIGHT, check_sides, first_look, parse_training

GENERATORS = {**OWN, "oasis": oasis.Generator, "dpgan": dpgan.Generator}
# What the systems change, at any size ...
MODELS = {
    "dp-sims": dict(generator="dp-sims", discriminator="dp-sims"),
    "oasis": dict(generator="oasis", discriminator="oasis", gamma=0.0, label_smoothing=0.0, lambda_c=0.0, lambda_d=0.0,
                  lambda_lm=10.0, sampling="uniform", offsets="off", growth="nearest"),
    "dpgan": dict(generator="dpgan", discriminator="dpgan", gamma=0.0, label_smoothing=0.0, lambda_c=0.0, lambda_d=0.0,
                  lambda_lm=5.0, lambda_patch=1.0, lambda_fm=1.0, class_weights="inverse", sampling="uniform",
                  offsets="off", growth="nearest")}
# ... and at full size. PAPER: DP-GAN gives no batch size and no length. / HERE: OASIS's, 32 images for 200 epochs.
# WHY: its Table 1 compares with OASIS by the same protocol; its released code has 5 images, for one small GPU.
PAPER = dict(batch_size=32, steps=126_000, lr=1e-4, lr_d=4e-4, beta2=0.999)
OF_DATASET = {                                                            # OASIS's, in steps of 32 and of 20 images
    "coco_stuff": dict(steps=369_000),
    "cityscapes": dict(steps=29_750, batch_size=20, lambda_lm=5.0, image_size="256x512")}
OASIS_CITYSCAPES = dict(lr=4e-4, ema_decay=0.999)                         # DP-GAN keeps 1e-4 and 0.9999 there
TOY = {"oasis": dict(widths=(96, 64, 32, 32, 32), hidden=32, padding="reflect"),
       "dpgan": dict(widths=(96, 64, 32, 32, 32), stem_channels=16, label_channels=16, padding="reflect")}
TOY_UNET = dict(encoder_widths=(32, 64, 96, 128), decoder_widths=(128, 96, 64, 32))  # to 4x4, as at 256x256
TOY_HEAD_CHANNELS = 32


# ------------------------------------------------------------------------------------------ the two steps

def draw_noise(batch_size, z_dim, num_classes, rng):
    """train.draw_noise's, and LabelMix's flips (B, C) bool, one for each image and class."""
    noise = train.draw_noise(batch_size, z_dim, num_classes, rng)
    return {**noise, "flips": torch.rand(batch_size, num_classes, generator=rng) < 0.5}


def weigh(label_counts, unknown, args):
    """alpha_c (C,): train.weigh's, or that of (DP-GAN Eq. 4) as printed, "inverse"."""
    # As printed, D's real term weighs K times as much as its fake term, K being the classes present. DP-GAN's released
    # code divides alpha by K, "balanced". On toy scenes that is worse: RESULTS.md.
    return (dpgan.class_weights(label_counts, unknown) if args.class_weights == "inverse"
            else train.weigh(label_counts, unknown, args))


def oasis_discriminator_losses(D, batch, fake, fake_features, alpha, args):
    """As train.discriminator_losses, and lambda_LM L_LM (DP-GAN Eq. 8)."""
    terms, real_logits, fake_logits = train.discriminator_losses(D, batch, fake, fake_features, alpha, args)
    return add_label_mix(terms, D, batch, fake, real_logits, fake_logits, args), real_logits, fake_logits


def add_label_mix(terms, D, batch, fake, real_logits, fake_logits, args):
    """terms with lambda_LM L_LM (DP-GAN Eq. 8), where it has a weight. Logits (B, C + 1, H, W) of the two pictures."""
    if args.lambda_lm > 0:
        mask = oasis.label_mix_mask(batch["label_map"], batch["flips"])       # (B, 1, H, W), True is real
        mixed_logits = D(oasis.label_mix(batch["real"], fake, mask))          # (B, C + 1, H, W)
        terms["label_mix"] = args.lambda_lm * oasis.label_mix_loss(mixed_logits, real_logits, fake_logits, mask)
    return terms


def dpgan_generator_losses(G, D, P, batch, alpha, rng, args):
    """L_G = pixel term + patch term + L_fm  (DP-GAN Eq. 7), shapes as train.generator_losses."""
    label_map = batch["label_map"]
    image, features = G(label_map, batch["z_1"], batch.get("offsets"), return_features=True)
    logits, scores, matched = D.everything(image)                             # (B, C + 1, H, W), [..], [..]
    terms = {"gan": args.lambda_gan * generator_loss(logits, label_map, alpha, args.gamma) / label_map[0].numel()}
    # L_G = pixel term - 1/L sum_i E min(-1 + D_p^i(psi^i(G)), 0) + L_fm                 (DP-GAN Eq. 7)
    if args.lambda_patch > 0:
        terms["patch"] = args.lambda_patch * dpgan.patch_generator_loss(scores)
    if args.lambda_fm > 0:
        with torch.no_grad():
            real_features = D.everything(batch["real"])[2]
        terms["feature_matching"] = args.lambda_fm * dpgan.feature_matching_loss(real_features, matched)
    return terms, image, features, None


def dpgan_discriminator_losses(D, batch, fake, fake_features, alpha, args):
    """L_pixel + L_ms + lambda_LM L_LM  (DP-GAN Eq. 9), shapes as train.discriminator_losses."""
    real_logits, real_scores, _ = D.everything(batch["real"])
    fake_logits, fake_scores, _ = D.everything(fake)
    L_pixel = discriminator_loss(real_logits, fake_logits, batch["label_map"], alpha, args.gamma, args.label_smoothing)
    # L_pixel + L_ms + lambda_LM L_LM                                                    (DP-GAN Eq. 9)
    # PAPER: L_pixel is a sum over pixels, the others are means. / HERE: divided by H*W, in L_G, too. / WHY: as printed
    # it would be 65,536 times as heavy; its code has means.
    terms = {"pixels": L_pixel / batch["label_map"][0].numel()}
    if args.lambda_patch > 0:
        terms["patch"] = args.lambda_patch * dpgan.patch_discriminator_loss(real_scores, fake_scores)
    return add_label_mix(terms, D, batch, fake, real_logits, fake_logits, args), real_logits, fake_logits


# ----------------------------------------------------------------------------------------------- networks

def build_networks(args, dataset, probabilities, folder, ranks):
    """As train.build_networks, of the generator and the discriminator that the options name."""
    small, C = args.preset != "paper", len(dataset.classes)
    unet = TOY_UNET if small else {}
    levels = 5 if args.discriminator == "dp-sims" else len(unet.get("encoder_widths", oasis.ENCODER_WIDTHS))
    check_sides(args.image_size, 2 ** levels, train.split_batch(args, ranks)[0] * ranks.world,
                deepest=2 ** (levels + (args.discriminator == "dpgan")))  # its patch heads halve once more
    torch.manual_seed(args.seed)
    if args.generator == "dp-sims":
        G, options = train.build_generator(args, dataset)
    else:
        options = dict(num_classes=C, offset_channels=2 * dataset.has_instances)
        options.update(TOY[args.generator] if small else {})
        if args.generator == "dpgan":
            options["concatenate_last"] = args.concatenate_last == "on"
        G = GENERATORS[args.generator](**options)
    if args.discriminator == "dp-sims":
        D = train.build_discriminator(args, dataset, probabilities, folder, ranks)
    elif args.discriminator == "oasis":
        D = oasis.Discriminator(C, **unet)
    else:
        head = {"head_channels": TOY_HEAD_CHANNELS} if small else {}
        D = dpgan.Discriminator(C, **unet, patch=args.patch, matched=args.matched, **head)
    return G, D, train.build_contrastive(args, ranks), args.generator, options


def system_of(args):
    """train.System of the networks and losses that the options name."""
    generator_losses, discriminator_losses = {
        "dp-sims": (train.generator_losses, train.discriminator_losses),
        "oasis": (train.generator_losses, oasis_discriminator_losses),
        "dpgan": (dpgan_generator_losses, dpgan_discriminator_losses)}[args.discriminator]
    return train.System(
        {"dp-sims": "DP-SIMS", "oasis": "OASIS", "dpgan": "DP-GAN"}[args.model], build_networks,
        draw_noise if args.lambda_lm > 0 else train.draw_noise, weigh, generator_losses, discriminator_losses,
        train.DP_SIMS.fixed_options + ("generator", "concatenate_last", "discriminator", "patch", "matched"))


# ------------------------------------------------------------------------------------------------ options

def parse_options(argv):
    """argv -> argparse.Namespace: the command line, over the model's and the dataset's numbers, over train.py's."""
    known = first_look(argv, "model")
    if {"-h", "--help"} & set(argv):
        known.model = known.model or "dp-sims"
    if known.model not in MODELS:
        raise InputError(f"--model {known.model or 'is missing'}: choose from {', '.join(MODELS)}")
    own = known.model != "dp-sims"
    defaults = {**train.defaults_of(known), "patch": "encoder", "matched": "decoder", "concatenate_last": "on",
                "lambda_lm": 0.0, "lambda_patch": 0.0, "lambda_fm": 0.0, **MODELS[known.model]}
    if own and known.preset == "paper":
        defaults.update({**PAPER, **OF_DATASET.get(known.dataset, {})})
        if (known.model, known.dataset) == ("oasis", "cityscapes"):
            defaults.update(OASIS_CITYSCAPES)
    defaults.update(output_dir=f"runs/{known.dataset}_{known.model}" if own else f"runs/{known.dataset}_mixed")
    parser = train.make_parser("Train OASIS, DP-GAN or a mixture. Run the same command again to resume.", defaults,
                               class_weights=("balanced", "none", "inverse"))
    add = parser.add_argument_group("baselines", "--class-weights inverse is DP-GAN Eq. 4 as printed: balanced, "
                                    "without its 1/K").add_argument
    add("--model", choices=MODELS, required=True, default=argparse.SUPPRESS,
        help="whose networks, losses and numbers; the options below then mix them")
    add("--generator", choices=MODELS)
    add("--discriminator", choices=MODELS)
    add("--concatenate-last", choices=("on", "off"), help="the last map of DP-GAN's label pyramid, at every scale (its "
        "supplement's Table 3)")
    add("--patch", choices=dpgan.PATCH_LEVELS, help="where DP-GAN's patch heads sit (its Table 4b)")
    add("--matched", choices=dpgan.MATCHED, help="features that DP-GAN matches (its Table 4c)")
    add("--lambda-lm", type=WEIGHT, help="weight of LabelMix (DP-GAN Eq. 8); 0 leaves it out")
    add("--lambda-patch", type=WEIGHT, help="weight of the patch losses (DP-GAN Eq. 5); 0 leaves them out")
    add("--lambda-fm", type=WEIGHT, help="weight of feature matching (DP-GAN Eq. 6); 0 leaves it out")
    return check(train.check(parse_training(parser, argv)))


def check(args):
    """args, where losses and networks fit together. Raises InputError."""
    of_dpgan = args.discriminator == "dpgan"
    for weight, fits, needs in (
            ("patch", of_dpgan and args.patch != "none", "dpgan with --patch other than none"),
            ("fm", of_dpgan and args.matched != "none", "dpgan with --matched other than none"),
            ("lm", args.discriminator != "dp-sims", "oasis or dpgan"),
            ("c", not of_dpgan, "dp-sims or oasis"), ("d", not of_dpgan, "dp-sims or oasis")):
        if getattr(args, f"lambda_{weight}") > 0 and not fits:
            raise InputError(f"--lambda-{weight} {getattr(args, f'lambda_{weight}')} needs --discriminator {needs}; or "
                             f"give 0")
    return args


if __name__ == "__main__":
    def main():
        args = parse_options(sys.argv[1:])
        return train.train(args, system_of(args))
    run_script("baselines.train", main)
