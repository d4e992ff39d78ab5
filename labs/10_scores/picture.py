"""Measure, and draw picture.png of lab 10:   python labs/10_scores/picture.py

The generator here is perfect: its pictures are toy scenes, as the real ones are, but other scenes. So whatever distance
it gets is not its fault. First: how many of its pictures are scored. Then: the same pictures, in another file format or
shrunk in another way. About 5,000 pictures go through EfficientNet-Lite0 (a random Inception where it is not installed)
in a few minutes. Unlike evaluate.py this does not enlarge them: a twelfth of the work, and a distance of its own.
"""
import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from metrics import fid, to_tensor  # noqa: E402
from readers.toy import toy_scene  # noqa: E402
from support.pages import draw_columns  # noqa: E402

REAL, GENERATED = 0, 1  # seeds of the scenes
COUNTS, COPIES, SHOWN = (50, 100, 200, 500, 1000, 2000), 250, (4,)
SHRUNK = {"nearest": Image.NEAREST, "bicubic": Image.BICUBIC}


def scene(seed, i, size=64):
    return toy_scene(seed, i, size, size)[0]                                                       # (H, W, 3)


def as_jpeg(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def shrink(picture, how):
    """(2 H, 2 W, 3) -> (H, W, 3); all but nearest average what falls into one pixel (Pillow's antialiasing)."""
    return np.array(Image.fromarray(picture).resize([side // 2 for side in picture.shape[1::-1]], SHRUNK[how]))


COPY = {"as drawn": lambda i: scene(GENERATED, i),
        "JPEG 95": lambda i: as_jpeg(scene(GENERATED, i), 95),
        "JPEG 75": lambda i: as_jpeg(scene(GENERATED, i), 75),
        "bicubic": lambda i: shrink(scene(GENERATED, i, 128), "bicubic"),
        "nearest": lambda i: shrink(scene(GENERATED, i, 128), "nearest")}


@torch.no_grad()
def features_of(network, read, count, what):
    """(count, D) float64; pictures go in as they are, scaled to [-1, 1]"""
    parts = [list(range(first, min(first + 25, count))) for first in range(0, count, 25)]
    return torch.cat([network.net(to_tensor([read(i) for i in part], "cpu") / 127.5 - 1).double()
                      for part in tqdm(parts, desc=what)])


def gaussian(f):
    return f.mean(dim=0), torch.cov(f.T)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="real pictures, and the most generated ones")
    count = parser.parse_args().count
    network, name, where, _ = fid.load_inception(fid.without_download(), "cpu")
    print(f"{name} on pictures of 64x64: {where}")
    real = gaussian(features_of(network, lambda i: scene(REAL, i), count, "real"))
    generated = features_of(network, COPY["as drawn"], count, "generated")
    for n in (n for n in COUNTS if n <= count):
        print(f"{n:5d} pictures: {fid.frechet_distance(*gaussian(generated[:n]), *real):.2f}", flush=True)
    columns, first = {}, generated[:min(COPIES, count)]
    for copy, read in COPY.items():
        f = first if copy == "as drawn" else features_of(network, read, len(first), copy)
        to_real, to_first = (fid.frechet_distance(*gaussian(f), *other) for other in (real, gaussian(first)))
        print(f"{len(f):5d} pictures, {copy:8}: {to_real:.2f}; to the same ones as drawn {to_first:.2f}", flush=True)
        columns[f"{copy}: {to_real:.1f}"] = np.stack([read(i) for i in SHOWN])
    file = Path(__file__).with_name("picture.png" if count == 2000 else f"picture_{count}.png")
    draw_columns(columns, file)
    print(file)
