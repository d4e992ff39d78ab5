"""Draw picture.png of lab 06:   python labs/06_every_pixel/picture.py

What one real pixel costs D, as a function of the p that it gives to the true class: without and with label smoothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402, after the line that finds the project

from labs.curves import draw_curves  # noqa: E402
from losses import discriminator_loss  # noqa: E402

C = 11  # classes of the toy scenes


def costs(p, gamma, smoothing):
    """L_D (Eq. 3) of one real pixel for each p of its own class, the other C outputs alike; no generated pixel."""
    log_p = torch.stack([p.log()] + [((1 - p) / C).log()] * C, dim=1)                                # (n, C + 1)
    surely_fake = torch.zeros(1, C + 1, 1, 1)
    surely_fake[:, C] = 200.0                                                                        # costs nothing
    t, alpha = torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(C)
    return torch.stack([discriminator_loss(row.view(1, -1, 1, 1), surely_fake, t, alpha, gamma, smoothing)
                        for row in log_p])


if __name__ == "__main__":
    p = torch.linspace(0.005, 0.995, 199)
    plain = {f"gamma {gamma}": costs(p, gamma, 0.0) for gamma in (0, 1, 2)}
    smooth = {f"gamma {gamma}": costs(p, gamma, 0.1) for gamma in (0, 1, 2)}
    y = smooth["gamma 0"]                          # the others' lowest points are the lab's question
    marks = [(p[y.argmin()].item(), y.min().item(), f"{p[y.argmin()]:.2f}")]
    file = Path(__file__).with_name("picture.png")
    both = {"x": p, "x_name": "p of the true class", "ends": (0, 1), "top": 2.0}
    draw_curves([
        {"title": "cost of a real pixel over p, no smoothing", "curves": plain, **both},
        {"title": f"epsilon 0.1, C = {C}: where is it lowest?", "curves": smooth, "marks": marks, **both}], file)
    print(file)
