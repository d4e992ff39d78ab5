"""Draw picture.png of lab 07:   python labs/07_two_views/picture.py

A toy scene in two looks, as the generated and the real picture: an anchor, its positive, some negatives; and how much
each place of the real picture would weigh as a negative, e^(v.v- / tau), for three tau. The vectors are features of a
VGG-19 with random weights at scale 1/4, without their mean, of length 1.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402

from losses import VGG_TAPS, ContrastiveFeatures, draw_positions  # noqa: E402
from readers.toy import TOY_SEED, TOY_TRAIN, toy_scene  # noqa: E402
from support.pages import draw_columns, save_picture  # noqa: E402

SCENE, SIZE, TAUS, PLACES = TOY_TRAIN + 22, 128, (0.07, 0.3, 2.0), ((24, 20), (10, 12))  # row and column at scale 1/4
BLACK, GREEN, RED = (0, 0, 0), (0, 200, 0), (230, 0, 0)


def with_dots(picture, places, colour):
    """A copy with squares of 4x4 pixels in a white frame: the pixels of one place at scale 1/4."""
    picture = picture.copy()
    for y, x in places:
        picture[max(4 * y - 1, 0):4 * y + 5, max(4 * x - 1, 0):4 * x + 5] = 255
        picture[4 * y:4 * y + 4, 4 * x:4 * x + 4] = colour
    return picture


@torch.no_grad()
def columns():
    """{title: (rows, 128, 128, 3) uint8}"""
    looks = [toy_scene(TOY_SEED, SCENE, SIZE, SIZE, appearance=look)[0] for look in (5, 1)]
    images = torch.from_numpy(np.stack(looks)).permute(0, 3, 1, 2).float() / 127.5 - 1              # (2, 3, H, W)
    features = ContrastiveFeatures("random", vgg_share=0.25)
    maps = features.backbone[:VGG_TAPS[0] + 1]((images + 1) / 2)
    v_g, v_x = F.normalize(maps - maps.mean(dim=(2, 3), keepdim=True), dim=1)                        # (C, 32, 32) each
    side = v_x.shape[2]
    found = {"generated: an anchor": [], "real: positive, negatives": [], **{f"tau {tau}": [] for tau in TAUS}}
    _, candidate, _ = draw_positions(side * side, 1, 24, torch.Generator().manual_seed(0))
    negatives = [divmod(int(p), side) for p in candidate]
    for place in PLACES:
        products = torch.einsum("c,cyx->yx", v_g[:, place[0], place[1]], v_x)                        # v.v- everywhere
        found["generated: an anchor"].append(with_dots(looks[0], [place], BLACK))
        found["real: positive, negatives"].append(with_dots(with_dots(looks[1], negatives, RED), [place], GREEN))
        for tau in TAUS:
            weight = torch.exp((products - products.max()) / tau).mul(255).byte().numpy()
            found[f"tau {tau}"].append(weight.repeat(4, axis=0).repeat(4, axis=1)[..., None].repeat(3, axis=2))
    return {title: np.stack(pictures) for title, pictures in found.items()}


if __name__ == "__main__":
    file = Path(__file__).with_name("picture.png")
    draw_columns(columns(), file)
    save_picture(Image.open(file).convert("RGB").quantize(224), file)   # below 60 KB
    print(file)
