"""Draw picture.png of lab 04:   python labs/04_noise_by_attention/picture.py

A of Eq. 1 at every pixel of two toy scenes, its first three channels as red, green and blue; random weights. With eight
tokens, with one, and, beside them, what concatenation gives every pixel: z itself.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402, after the line that finds the project
import torch.nn.functional as F  # noqa: E402

from data import open_dataset  # noqa: E402
from generator import CrossAttention, NoiseMapping, one_hot, z_of_seed  # noqa: E402
from support.pages import colour_labels, draw_columns, to_pixels  # noqa: E402

Z_DIM, WIDTH, SCENES = 64, 32, (4, 22)


@torch.no_grad()
def columns(dataset):
    """{title: (rows, 64, 64, 3) uint8}"""
    label_map = torch.stack([dataset[i]["label_map"] for i in SCENES]).long()                      # (B, H, W)
    # in place of h: the classes around each pixel
    h = F.avg_pool2d(one_hot(label_map, len(dataset.classes), torch.float32), 9, 1, 4, count_include_pad=False)
    found = {"label map": colour_labels(label_map, dataset.palette)}
    for tokens in (8, 1):
        torch.manual_seed(3)
        mapping, block = NoiseMapping(Z_DIM, 256, tokens, WIDTH), CrossAttention(len(dataset.classes), WIDTH)
        for layer in (*mapping.mlp[::2], block.to_query, block.to_key, block.to_value):
            torch.nn.init.normal_(layer.weight, std=1.6 * layer.in_features ** -0.5)
        block.to_query.weight.mul_(6)      # the shares of the tokens: far from equal, as after training
        block.eta.fill_(1)
        for seed in (0, 1):
            w = mapping(z_of_seed(seed, Z_DIM)[None]).expand(len(h), -1, -1)
            A = block(h, w) - h                                                                    # (B, C, H, W)
            found[f"{tokens} token{'s' * (tokens > 1)}, z_{seed + 1}"] = to_pixels(A[:, :3] / 2)
    for seed in (0, 1):
        z = z_of_seed(seed, Z_DIM)[:3].view(1, 3, 1, 1).expand(len(h), 3, *h.shape[2:])            # (B, 3, H, W)
        found[f"concatenated z_{seed + 1}"] = to_pixels(z / 2)
    return found


if __name__ == "__main__":
    file = Path(__file__).with_name("picture.png")
    draw_columns(columns(open_dataset("toy", None, "val", (64, 64))), file)
    print(file)
