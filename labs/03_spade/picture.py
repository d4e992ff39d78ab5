"""Draw picture.png of lab 03:   python labs/03_spade/picture.py

Four label maps, three of them of one class everywhere, through one random convolution and then a normalisation, as
colours (three channels): instance norm and batch norm, and instance norm with the scale and shift of SPADE.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from data import open_dataset  # noqa: E402
from generator import SPADE, one_hot  # noqa: E402
from support.pages import colour_labels, draw_columns, to_pixels  # noqa: E402

SCENE, CLASSES = 22, (0, 3, 2)   # a scene; pictures that are nothing but sky, grass or water


@torch.no_grad()
def columns(dataset):
    """{title: (rows, 64, 64, 3) uint8}"""
    scene = dataset[SCENE]["label_map"].long()[None]                                               # (1, H, W)
    label_map = torch.cat([scene, *(torch.full_like(scene, c) for c in CLASSES)])                  # (4, H, W)
    torch.manual_seed(5)
    t, block = one_hot(label_map, len(dataset.classes), torch.float32), SPADE(3, len(dataset.classes), "reflect")
    x = F.conv2d(F.pad(t, (1, 1, 1, 1), mode="reflect"), torch.randn(3, len(dataset.classes), 3, 3) / 3)  # (4, 3, H, W)
    torch.nn.init.normal_(block.to_gamma_beta.weight, std=0.25)
    alone = torch.cat([block.norm(x[:1]), *(block.norm(x[i:i + 1]) for i in (1, 2, 3))])           # one by one
    alike = block.norm(x[1:2].expand(4, -1, -1, -1))                       # a batch of four pictures of the sky
    found = {"label map": colour_labels(label_map, dataset.palette), "a convolution": to_pixels(x / 3),
             "instance norm": to_pixels(alone / 3), "batch norm": to_pixels(block.norm(x) / 3),
             "instance + SPADE": to_pixels(torch.cat([block(x[i:i + 1], t[i:i + 1]) for i in range(4)]) / 3)}
    print(f"a batch of four skies after batch norm: {alike.abs().max():.3f} at most")
    return {title: np.asarray(pictures) for title, pictures in found.items()}


if __name__ == "__main__":
    file = Path(__file__).with_name("picture.png")
    draw_columns(columns(open_dataset("toy", None, "val", (64, 64))), file)
    print(file)
