"""Seconds for one picture at full size: DP-SIMS, OASIS and DP-GAN in turn, random weights (DP-SIMS Table 4).

    python -m baselines.latency

The time of a network does not depend on its weights. It needs no data and no checkpoint.
"""
import sys
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from baselines.train import GENERATORS
from metrics.latency import RUNS, WARM_UP
from sample import fold_spectral_norms
from support.errors import run_script
from support.options import COUNT, check_sides, new_parser, size
from support.profile import flops_of, seconds_of
from support.ranks import setup_ranks

CLASSES = 151  # ADE20K's


@torch.no_grad()
def measure(H, W, runs, device):
    """-> {architecture: (parameters, GFLOP a picture, {precision: [seconds, ...]})}, eager.

    The networks take turns, so that a busy moment of the machine meets them all.
    """
    torch.manual_seed(0)
    blocks = torch.randint(CLASSES, (1, H // 16, W // 16), device=device)
    label_map = blocks.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)                   # (1, H, W)
    ways, found = {}, {}
    for name, architecture in GENERATORS.items():
        G = fold_spectral_norms(architecture(CLASSES).eval()).to(device, memory_format=torch.channels_last)
        z = torch.randn(1, G.z_dim, device=device)
        ways[name] = partial(G, label_map, z)
        found[name] = sum(p.numel() for p in G.parameters()), flops_of(ways[name]) / 1e9, {"fp32": [], "bf16": []}
    for turn in tqdm(range(-WARM_UP, runs), desc="latency", disable=None):
        for name, run in ways.items():
            for precision, times in found[name][2].items():
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    seconds = seconds_of(run, device)
                times += [seconds] if turn >= 0 else []
    return found


def main(argv):
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=size, default="256", help="height x width")
    parser.add_argument("--runs", type=COUNT, default=RUNS, help="pictures of each network and precision")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(argv)
    H, W = args.image_size
    check_sides((H, W), 32)  # five halvings
    ranks = setup_ranks(args.device)
    found = measure(H, W, args.runs, ranks.device)
    print(f"{'':<9}{'parameters':>12}{'GFLOP':>9}   fp32{'':>27}bf16")
    for name, (parameters, flops, times) in found.items():
        cells = [f"{1e3 * np.mean(some):9.2f} ms +- {1e3 * np.std(some):.2f}, "
                 f"{np.median(some) / np.median(found['oasis'][2][precision]):.2f}"
                 for precision, some in times.items()]
        print(f"{name:<9}{parameters:>12,}{flops:>9.1f}", *(f"{cell:<31}" for cell in cells))
    print(f"{ranks.device_name()}, torch {torch.__version__}; one picture of {H}x{W} (height x width), {CLASSES} "
          f"classes, eager, mean and standard deviation of {args.runs} runs, medians over OASIS's; fp32 has no TF32")


if __name__ == "__main__":
    run_script("baselines.latency", lambda: main(sys.argv[1:]))
