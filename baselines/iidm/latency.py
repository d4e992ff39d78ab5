"""Seconds for one picture of IIDM by IIDM Eq. 5 and by DDIM, beside a GAN's (DP-SIMS Table 4).

    python -m baselines.iidm.latency --checkpoint IIDM_EMA --against GAN_EMA
"""
import sys
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from baselines.iidm import diffusion
from baselines.iidm.diffusion import Inference
from baselines.iidm.sample import load_model
from data import open_dataset
from metrics.latency import RUNS, WARM_UP
from sample import load_generator, noise
from support.errors import InputError, run_script
from support.options import new_parser
from support.profile import seconds_of
from support.ranks import setup_ranks

TURNS = 5  # in each turn every way to denoise makes one picture, and the GAN makes ten


@torch.no_grad()
def measure(model, label_map, reference, against, device):
    """Seconds for one picture, float32. The ways take turns, so that a busy moment of the machine meets them all.

    label_map (1, H, W) int64, reference (1, 3, H, W) in [-1, 1], on the device. against: a generator, or None.
    -> {(what, passes of a network): [seconds, ...]}
    """
    T, draw = diffusion.START, partial(diffusion.generate, model, label_map, reference, [0])
    ways = {("IIDM Eq. 5 from noise", diffusion.STEPS): partial(draw, Inference(from_noise=True)),
            (f"IIDM Eq. 5 from T = {T}", T): partial(draw, Inference(start=(T,))),
            (f"DDIM from T = {T}", 50): partial(draw, Inference(start=(T,), ddim_steps=50)),
            (f"DDIM from T = {T}", 25): partial(draw, Inference(start=(T,), ddim_steps=25))}
    draw(Inference(start=(1,)))  # the first pass is a slow one
    if against is not None:
        offsets = torch.zeros(1, 2, *label_map.shape[1:], device=device) if against.offset_channels else None
        ways["GAN", 1] = partial(against, label_map, noise([0], 0, against.z_dim).to(device), offsets)
        for _ in range(WARM_UP):
            ways["GAN", 1]()
    times = {way: [] for way in ways}
    for _ in tqdm(range(TURNS), desc="latency", disable=None):
        for (what, passes), run in ways.items():
            times[what, passes] += [seconds_of(run, device) for _ in range(RUNS // TURNS if what == "GAN" else 1)]
    return times


def main(argv):
    parser = new_parser("Seconds for one picture by IIDM Eq. 5 and by DDIM, and by a GAN in turn with them.")
    parser.add_argument("--checkpoint", required=True, help="an ema_*.pt of IIDM")
    parser.add_argument("--against", metavar="EMA_FILE", help="a GAN's, of the same dataset")
    parser.add_argument("--data-path", help="folder of the dataset; not needed for toy")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(argv)
    ranks = setup_ranks(args.device)
    model, checkpoint = load_model(args.checkpoint, None, ranks.device)
    against, other = load_generator(args.against, ranks.device) if args.against else (None, checkpoint)
    (H, W), classes = checkpoint["image_size"], checkpoint["classes"]
    if other["classes"] != classes or against and (H % against.downsampling or W % against.downsampling):
        raise InputError(f"--against {args.against}: expected a GAN's ema_*.pt of the same dataset and size")
    sample = open_dataset(checkpoint["dataset"], args.data_path, "val", (H, W), instances=False)[0]
    label_map, image = (sample[name][None].to(ranks.device) for name in ("label_map", "image"))
    times = measure(model, label_map.long(), image.float() / 127.5 - 1, against, ranks.device)
    for (what, passes), seconds in times.items():
        ratio = f", {np.mean(seconds) / np.mean(times['GAN', 1]):.1f} x the GAN" if against else ""
        print(f"{what:<26}{passes:>5} passes{np.mean(seconds):>11.4f} s +- {np.std(seconds):.4f} s{ratio}")
    print(f"{ranks.device_name()}, torch {torch.__version__}; one picture of {H}x{W} (height x width), float32, from "
          f"label map and reference on the device to a picture there, E and D included; mean and standard deviation "
          f"of {TURNS} runs, of the GAN {RUNS}")


if __name__ == "__main__":
    run_script("baselines.iidm.latency", lambda: main(sys.argv[1:]))
