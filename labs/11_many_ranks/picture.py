"""Draw picture.png of lab 11:   python labs/11_many_ranks/picture.py

A small network learns on one rank, and the same on two, which are threads here. How far are the weights apart? Nothing
but rounding, where the ranks work as one; then with one mistake each.
"""
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402

from labs.curves import draw_curves  # noqa: E402
from labs.pieces import load  # noqa: E402
from support.ranks import average_gradients, share, synchronise_batch_norm  # noqa: E402

together = load(Path(__file__).with_name("together.py")).together
ALONE, STEPS, B = SimpleNamespace(device=torch.device("cpu"), rank=0, world=1), 60, 8


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 2, 1))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()]).clone()


def learn(ranks, kept, batch_norm="all", noise="all", gradients="mean"):
    """STEPS steps of SGD on noise -> [the weights (n,) after each step]. kept: a network for each rank."""
    net, found = kept[ranks.rank], []
    if batch_norm == "all":
        synchronise_batch_norm(net, ranks)
    for step in range(1, STEPS + 1):
        rng = torch.Generator().manual_seed(step)
        if noise == "all":
            z = share({"z": torch.randn(B, 4, 3, 3, generator=rng)}, ranks)["z"]                 # (B / world, 4, 3, 3)
        else:  # each rank draws its own part, with the same seed
            z = torch.randn(B // ranks.world, 4, 3, 3, generator=rng)
        loss = (net(z) - z[:, :2].square()).square().mean()
        net.zero_grad()
        loss.backward()
        if gradients != "alone":
            average_gradients(list(net.parameters()), ranks.world)
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.05 * (ranks.world if gradients == "sum" else 1) * p.grad
        found.append(weights(net))
    return found


def apart(**mistake):
    """(STEPS,) the distance of two ranks to one, as a share of how far one has moved in all."""
    one = learn(ALONE, [network()])
    two = together(lambda ranks, nets=[network(), network()]: learn(ranks, nets, **mistake))[0]
    moved = (one[-1] - weights(network())).norm()
    return np.array([((a - b).norm() / moved).item() for a, b in zip(one, two)])


if __name__ == "__main__":
    runs = {"as one": {}, "each rank its own batch norm": {"batch_norm": "own"},
            "each rank its own noise, same seed": {"noise": "own"}, "gradients summed": {"gradients": "sum"},
            "gradients not averaged": {"gradients": "alone"}}
    curves = {name: apart(**mistake) for name, mistake in runs.items()}
    for name, values in curves.items():
        print(f"{name:36}{values[-1]:.1e} after {STEPS} steps")
    file = Path(__file__).with_name("picture.png")
    draw_curves([{"title": "two ranks against one: weights apart / moved, over steps", "x": range(1, STEPS + 1),
                  "ends": (0, STEPS), "top": 0.5, "curves": curves}], file)
    print(file)
