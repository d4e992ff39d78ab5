"""Draw picture.png of lab 08:   python labs/08_two_steps/picture.py

Left, the smallest GAN: the real data is the number 1, G is a number theta, D(x) = psi x. Right: how much of the weights
at the start is left in an average of decay 0.9999.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402, after the line that finds the project
import torch.nn as nn  # noqa: E402

from labs.curves import draw_curves  # noqa: E402
from support.optimisation import update_ema  # noqa: E402

STEPS, RATE = 1600, 0.03


def circle():
    """theta and its average after each step; each follows the gradient of psi (theta - 1), up or down."""
    net, average, psi, found = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), 0.0, []
    for each in (net, average):
        nn.init.constant_(each.weight, 0.2)
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            net.weight += RATE * psi
        psi += RATE * (1 - net.weight.item())
        update_ema(average, net, step, 0.995)
        found.append((net.weight.item(), average.weight.item()))
    return zip(*found)


def left_of_the_start(decays):
    """The share of the weights at step 0 in the average, after each step."""
    one, zero = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(one.weight)
    nn.init.zeros_(zero.weight)
    shares = []
    for step in decays:
        update_ema(one, zero, step, 0.9999)
        shares.append(one.weight.item())
    return shares


if __name__ == "__main__":
    theta, average = circle()
    far = 10 ** 9  # a step at which the warm-up is long over
    with_warm_up, without = left_of_the_start(range(1, 20_001)), left_of_the_start([far] * 20_000)
    file = Path(__file__).with_name("picture.png")
    draw_curves([
        {"title": "the smallest GAN: theta over steps", "x": range(1, STEPS + 1), "ends": (0, STEPS), "top": 2.5,
         "curves": {"G's number": theta, "its average": average}},
        {"title": "share of the start left, over thousands of steps",
         "x": [n / 1000 for n in range(0, 20_000, 50)], "ends": (0, 20), "top": 1.0,
         "curves": {"d = min(0.9999, (1 + step) / (10 + step))": with_warm_up[::50], "d = 0.9999": without[::50]},
         "marks": [(9.2, without[9199], f"step 9200: {without[9199]:.2f}")]}], file)
    print(file)
