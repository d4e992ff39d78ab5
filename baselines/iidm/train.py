"""Train IIDM: first its autoencoder E, D, then its denoising U-Net eps_theta (Algorithm 1).

    python -m baselines.iidm.train --dataset toy
    torchrun --nproc_per_node 8 -m baselines.iidm.train --dataset ade20k --data-path DIR --autoencoder vq-f4.pt

Run folder, resuming and ranks are those of train.py. Everything random is a function of (seed, step).
"""
import copy
import math
import os
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from baselines.iidm.diffusion import START, STEPS, Inference, denoising_loss, generate
from baselines.iidm.networks import IIDM
from data import DATASETS, training_batches
from support import logs, profile, runs
from support.checkpoints import read_torch, sha256_of
from support.errors import InputError, run_script
from support.optimisation import clip, set_lr, update_ema
from support.options import (AT_LEAST_0, POSITIVE, add_data_options, add_training_options, check_sides, first_look,
                             new_parser, number, parse_training)
from support.pages import colour_labels, legend_of, to_pixels
from support.ranks import average_gradients, parts_of, setup_ranks, share, split_batch, sum_over_ranks
from support.weights import fit
from train import EMA_BATCHES, STRIP_ROWS, open_run

# PAPER: no batch size, length, optimiser. / HERE: the released code's: AdamW 1e-4 without decay, 266,000 steps, EMA
# 0.9999; 32 images for its 30. / WHY: 32 can be dealt to eight ranks.
PAPER = dict(image_size="256", steps=266_000, batch_size=32, lr=1e-4, lr_decay_steps=[0, 0], clip_grad=0.0,
             ema_decay=0.9999, sampling="uniform", autoencoder_steps=50_000, autoencoder_lr=1e-4, log_every=50,
             picture_every=5000, save_every=1000, ema_every=10_000, workers=min(8, os.cpu_count() or 1))
TOY = dict(image_size="64", amp="off", steps=5000, batch_size=8, lr=1e-3, lr_decay_steps=[3000, 5000], ema_decay=0.995,
           autoencoder_steps=2000, autoencoder_lr=4e-4, workers=1, picture_every=500, save_every=200, ema_every=1000)
TOY_NETWORKS = dict(autoencoder_channels=16, autoencoder_multipliers=(1, 2, 4), autoencoder_blocks=1, latent_channels=8,
                    channels=64, multipliers=(1, 2, 2), blocks=1, attention_strides=(2, 4), head_channels=32, hidden=32)
VQ_F4 = dict(autoencoder_channels=128, autoencoder_multipliers=(1, 2, 4), autoencoder_blocks=2, latent_channels=3)
STRIP_DDIM_STEPS = 25  # of the pictures on the way


def train(args):
    """What the loop needs before it starts, and the loop, on every rank -> the exit code. Raises InputError."""
    ranks = setup_ranks(args.device, fast=True)
    split_batch(args, ranks)  # raises InputError before anything is written
    dataset, validation, folder, probabilities = open_run(args, ranks)
    model, options = build_model(args, len(dataset.classes))
    model = model.to(ranks.device, memory_format=torch.channels_last)
    adam = partial(torch.optim.AdamW, lr=args.lr, weight_decay=0.0, fused=True)
    identity = runs.identity_of(args, ("model", "dataset", "preset", "autoencoder_steps", "mask_dropout"), dataset)
    identity["autoencoder"] = "self" if args.autoencoder == "self" else sha256_of(args.autoencoder)
    run = runs.Run(folder, dataset, validation, probabilities, model, None, None,
                   copy.deepcopy(model).requires_grad_(False), adam(model.unet.parameters()),
                   adam(model.autoencoder.parameters()), "iidm", options, identity, None)
    done = runs.resume(run, args, ranks)
    if args.compile:
        for net in (model.unet, model.autoencoder.encoder, model.autoencoder.decoder):  # modulations() stays eager
            net.compile()
    parts = ", ".join(f"{name} {sum(p.numel() for p in net.parameters()):,}" for name, net in model.named_children())
    logs.banner("IIDM", [("autoencoder", f"{args.autoencoder}, the first {args.autoencoder_steps} steps"),
                         ("parameters", parts)], args, ranks, folder, done, len(dataset))
    look(run, done, runs.missed(run, done, args, ranks), args, ranks)
    stopped = runs.go_on(partial(loop, args, run, ranks), done, run, args, ranks)
    return runs.finish(folder, ranks, stopped)


def loop(args, run, ranks, stopping, done):
    """Steps done + 1 ... args.steps, on every rank: --autoencoder-steps of E and D, then Algorithm 1.

    stopping: a ranks.StopOnSignals. -> the signal that ended the loop, or 0."""
    model, ema, dataset, A, (H, W) = run.G, run.ema, run.dataset, args.autoencoder_steps, args.image_size
    micro, accumulation = split_batch(args, ranks)
    draws = runs.draws_of(args)  # other ones after a rollback
    loader = training_batches(dataset, run.probabilities, done, args.steps, draws, ranks)
    log = []
    nets, latest = {"E, D": model.autoencoder, "eps_theta": model.unet}, run.folder / "latest.pt"
    speed = profile.Speed({"E": model.autoencoder.encoder, "D": model.autoencoder.decoder, **nets}, args, ranks)
    latent = (model.latent_channels, H // model.shrinks, W // model.shrinks)
    progress = tqdm(total=args.steps, initial=done, desc="training", dynamic_ncols=True, disable=ranks.rank > 0 or None)
    for step in speed.steps(range(done + 1, args.steps + 1)):
        due, stage = stopping.begin(step, runs.what_is_due(step, args)), "autoencoder" if step <= A else "unet"
        if step == A:  # the last of E and D
            due = due | {"log"}
        try:
            if step == A + 1:
                speed.flops = 0  # of the autoencoder; those of the U-Net are counted anew
                settle_autoencoder(model, ema, training_batches(
                    dataset, run.probabilities, 0, EMA_BATCHES, args, ranks, workers=0), ranks)
            batch = runs.next_batch(loader, stopping)
        except InputError:  # a file that cannot be read: keep what was learnt
            runs.save_learnt(run, step - 1, done, log, nets, args, ranks, stopping)
            raise
        generator = torch.Generator().manual_seed(draws.seed * 1_000_003 + step)
        batch.update(share({  # Algorithm 1: t ~ Uniform(1, ..., 1000), epsilon ~ N(0, I)
            "t": torch.randint(1, STEPS + 1, (args.batch_size,), generator=generator),
            "noise": torch.randn(args.batch_size, *latent, generator=generator),
            "known": torch.rand(args.batch_size, generator=generator) >= args.mask_dropout}, ranks))
        net, values = getattr(model, stage), {}
        optimiser, lr, decay = ((run.optimiser_D, args.autoencoder_lr, (int(0.6 * A), A)) if step <= A
                                else (run.optimiser_G, args.lr, args.lr_decay_steps))
        lr = set_lr(optimiser, lr, step, decay)

        # ==== one step of E and D, or of eps_theta (Algorithm 1)
        optimiser.zero_grad()
        for part in parts_of(batch, micro):
            with torch.autocast(ranks.device.type, torch.bfloat16, enabled=args.amp == "bf16"):
                loss = autoencoder_loss(model, part["real"]) if step <= A else denoising_loss(          # (IIDM Eq. 4)
                    model, part["real"], part["label_map"], part["t"], part["noise"], part["known"])
            (loss / accumulation).backward()
            logs.add(values, {"loss": loss}, accumulation)
        average_gradients(list(net.parameters()), ranks.world)
        norm = clip(list(net.parameters()), args.clip_grad, "log" in due)
        optimiser.step()
        update_ema(getattr(ema, stage), net, step if step <= A else step - A, args.ema_decay)

        # ---- once in a while: log, picture, checkpoint
        log.append(values)
        progress.update()
        stop = stopping.now()
        if stop and step < args.steps:  # there may be seconds only
            due = due & {"log"} | {"save"}
        if due:
            logs.check_finite(log, step, nets, latest, stopping.agree)
        if "log" in due:
            values["gradient"] = norm
            logs.write_metrics(log, step, {"stage": stage, "lr": lr}, speed, args, run.folder, progress, ranks)
            log = []
        speed.pause()
        if "save" in due:  # first: no picture that cannot be read costs a step
            runs.save(run, step, args, ranks)
        look(run, step, due, args, ranks)
        speed.go_on()  # pictures and checkpoints are not training time
        if stop:
            break
    progress.close()
    return stop


def look(run, step, due, args, ranks):
    """Kept average, of the U-Net's steps alone, and picture, where they are due."""
    if "average" in due and step > args.autoencoder_steps:
        runs.save_average(run, f"ema_{step:07d}.pt", step, {}, args, ranks)
    if "picture" in due and ranks.rank == 0:
        stage = "autoencoder" if step <= args.autoencoder_steps else "unet"
        runs.keep_strip(lambda: strip_columns(run.ema.eval(), run.validation, run.dataset, stage, ranks.device), run,
                        step, ranks)


def autoencoder_loss(model, real):
    """real (B, 3, H, W) -> a scalar.

    PAPER: E and D are "pretrained", no loss. / HERE: where no weights are given, the mean of |x - D(E(x))|. / WHY: it
    needs no further network; VQ-f4's perceptual and adversarial terms make sharper textures.
    """
    return (real - model.autoencoder.decode(model.autoencoder.encode(real)).float()).abs().mean()


@torch.no_grad()
def settle_autoencoder(model, ema, batches, ranks):
    """E and D stay what their averages are now; the standard deviation of their latents on `batches` is scaled to 1."""
    model.autoencoder.load_state_dict(ema.autoencoder.state_dict())
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        z = model.autoencoder.encode(batch["real"]).double()
        sums += torch.stack([z.new_tensor(z.numel()), z.sum(), z.square().sum()]).cpu()
    n, total, squares = sum_over_ranks(sums, ranks.world).tolist()
    deviation = math.sqrt(squares / n - (total / n) ** 2)
    for net in (model, ema):
        net.latent_scale.fill_(1 / deviation)
    ranks.say(f"the latents' standard deviation of {deviation:.3f} is scaled to 1")


@torch.no_grad()
def strip_columns(model, validation, training, stage, device):
    """What to look at: the autoencoder alone; then also pictures from references (training pictures) and from noise."""
    rows = min(STRIP_ROWS, len(validation))
    samples, styles = ([of[i * len(of) // rows] for i in range(rows)] for of in (validation, training))
    real, reference = (torch.stack([s["image"] for s in some]).to(device).float() / 127.5 - 1
                       for some in (samples, styles))                                                  # (rows, 3, H, W)
    label_map = torch.stack([s["label_map"] for s in samples])                                         # (rows, H, W)
    columns = {"label map": colour_labels(label_map, training.palette), "real": to_pixels(real),
               "D(E(real))": to_pixels(model.decode(model.encode(real)))}
    if stage == "unet":
        columns["reference"] = to_pixels(reference)
        for title, inference in (("I2I", Inference(start=(START,), ddim_steps=STRIP_DDIM_STEPS)),
                                 ("IIDM", Inference(ddim_steps=STRIP_DDIM_STEPS)),
                                 ("DM", Inference(from_noise=True, ddim_steps=STRIP_DDIM_STEPS))):
            columns[title] = to_pixels(generate(model, label_map.to(device).long(), reference, range(rows), inference))
    return columns, legend_of([label_map], training.classes, training.palette)


def build_model(args, num_classes):
    """-> (IIDM, its options). Raises InputError for an --autoencoder or an --image-size that does not fit."""
    options, state = dict(num_classes=num_classes, **(TOY_NETWORKS if args.preset == "toy" else {})), None
    if args.autoencoder != "self":
        found, state = read_autoencoder(args.autoencoder)
        options.update(found)
    torch.manual_seed(args.seed)
    model = IIDM(**options)
    check_sides(args.image_size, model.downsampling)
    if state is not None:
        fit(model.autoencoder, state, "the state dict of VQ-f4 (128 channels x 1, 2, 4, two blocks)", "--autoencoder",
            args.autoencoder)
    return model, options


def read_autoencoder(file):
    """--autoencoder FILE -> (the options of IIDM that it decides, state dict of Autoencoder). Raises InputError."""
    if not Path(file).is_file():
        raise InputError(f"--autoencoder {file}: not there; expected self, or a file")
    try:
        found = read_torch(file)
        if "identity" in found or found.get("architecture", "iidm") != "iidm":
            raise ValueError("a checkpoint of another kind")
        if "architecture" in found:  # an ema_*.pt of IIDM
            options = {name: found["generator"][name] for name in (*VQ_F4, "codes") if name in found["generator"]}
            return options, {name.removeprefix("autoencoder."): t for name, t in found["ema"].items()
                             if name.startswith("autoencoder.")}
        state = {name.removeprefix("first_stage_model."): t for name, t in found.get("state_dict", found).items()
                 if torch.is_tensor(t) and not name.startswith("loss.")}  # the networks of its training
        return dict(VQ_F4, codes=len(state.get("quantize.embedding.weight", ()))), state
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise InputError(f"--autoencoder {file}: cannot be read as weights ({type(error).__name__}); expected an "
                         f"ema_*.pt of IIDM, or the state dict of VQ-f4, plain tensors alone: a .ckpt that holds "
                         f"other objects can run code when it is opened") from None


def parse_options(argv):
    """argv -> argparse.Namespace: the command line, over the toy preset, over the paper. Raises InputError."""
    known = first_look(argv, "autoencoder")
    defaults = {**PAPER, **({"image_size": "256x512"} if known.dataset == "cityscapes" else {}),
                **(TOY if known.preset == "toy" else {})}
    if known.autoencoder not in (None, "self"):
        defaults["autoencoder_steps"] = 0
    first = defaults["autoencoder_steps"]  # the steps of the U-Net come after them
    decay = [step and first + step for step in defaults["lr_decay_steps"]]
    defaults.update(steps=first + defaults["steps"], lr_decay_steps=decay, preset=known.preset, offsets="off",
                    model="iidm", evaluate_every=0, output_dir=f"runs/{known.dataset}_iidm")
    parser = new_parser("Train IIDM: its autoencoder, then its denoising U-Net. Run the same command again to resume.",
                        "Defaults shown are those of the --dataset and --preset on this command line.")
    add_data_options(parser, DATASETS)
    group = parser.add_argument_group("model")
    group.add_argument("--preset", choices=("paper", "toy"), help="sizes of the networks, and every default below")
    group.add_argument("--autoencoder", metavar="FILE", default="self", help="self trains one here first; or a FILE: "
                       "an ema_*.pt of another run of IIDM, or the state dict of the public VQ-f4 weights")
    group.add_argument("--autoencoder-steps", type=AT_LEAST_0, help="how many of --steps train the autoencoder")
    group.add_argument("--autoencoder-lr", type=POSITIVE, help="falls to a tenth over the last 40 %% of these steps")
    group.add_argument("--mask-dropout", type=number(0, 0.999, float), default=0.0, metavar="P", help="leave a label "
                       "map out with this probability, for --guidance in sampling; the released code: 0.2")
    add_training_options(parser)
    parser.set_defaults(**defaults)
    args = parse_training(parser, argv)
    if args.autoencoder_steps >= args.steps or (args.autoencoder_steps == 0) != (args.autoencoder != "self"):
        raise InputError(f"--autoencoder-steps {args.autoencoder_steps}: expected 1 or more and less than --steps "
                         f"{args.steps}, of which they are the first; 0 with --autoencoder FILE, which is trained")
    return args


if __name__ == "__main__":
    run_script("baselines.iidm.train", lambda: train(parse_options(sys.argv[1:])))
