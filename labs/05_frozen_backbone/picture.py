"""Draw picture.png of lab 05:   python labs/05_frozen_backbone/picture.py

The standard deviation of each channel of a frozen backbone, the strongest first: raw, and conditioned.
EfficientNet-Lite1 with ImageNet's weights, which come with the packages of requirements-test.txt; eight toy scenes of
128x128.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402

from data import open_dataset  # noqa: E402
from discriminator import Backbone, condition_features  # noqa: E402
from labs.curves import draw_curves  # noqa: E402

SHARE = np.linspace(0, 1, 201)   # of the channels, the strongest first


def curve(feature):
    """Standard deviation of each channel, from the strongest to the weakest, at 201 places."""
    s = feature.std(dim=(0, 2, 3), correction=0).sort(descending=True).values
    return np.interp(SHARE, np.linspace(0, 1, len(s)), s)


@torch.no_grad()
def panels(dataset):
    image = torch.stack([dataset[i]["image"] for i in range(8)]).float() / 127.5 - 1               # (8, 3, H, W)
    features = Backbone("efficientnet_lite1", "imagenet")(image)
    F_4 = features[3]
    norm = nn.BatchNorm2d(F_4.shape[1], affine=False, track_running_stats=False)
    for level, f in enumerate(features, 1):
        at_an_end = ((torch.sigmoid(f) - 0.5).abs() > 0.48).float().mean()
        print(f"F_{level}: values from {f.min():.1f} to {f.max():.1f}; after the sigmoid {at_an_end:.0%} of them are "
              f"below 0.02 or above 0.98")
    return [{"title": "standard deviation of the raw channels", "top": 20, "x": SHARE, "ends": (0, 1), "curves": {
                f"F_{level}, {f.shape[1]} channels": curve(f) for level, f in enumerate(features, 1)}},
            {"title": "F_4, conditioned step by step", "top": 4, "x": SHARE, "ends": (0, 1), "curves": {
                "raw": curve(F_4), "sigmoid": curve(condition_features(F_4, nn.Identity())),
                "sigmoid, then batch norm": curve(condition_features(F_4, norm))}}]


if __name__ == "__main__":
    file = Path(__file__).with_name("picture.png")
    draw_curves(panels(open_dataset("toy", None, "val", (128, 128))), file)
    print(file)
