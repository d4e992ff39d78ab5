"""Draw picture.png of lab 01:   python labs/01_label_maps/picture.py

Toy scenes: a label map; the same at a quarter of its size and back, by nearest neighbour and by averaging the class
numbers; and the two offset maps, grey where there is no instance.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
from PIL import Image  # noqa: E402

from data import nearest, offset_maps, open_dataset  # noqa: E402
from support.pages import colour_labels, draw_columns  # noqa: E402

SCENES, SIZE, SMALL = (4, 22), 64, 24


def columns(dataset):
    """{title: (rows, 64, 64, 3) uint8}"""
    found = {"label map": [], f"nearest, {SMALL}x{SMALL}": [], f"averaged, {SMALL}x{SMALL}": [], "dy": [], "dx": []}
    for i in SCENES:
        _, labels, instances = dataset.planes(i)                                                     # (H, W) each
        kept, back = nearest(SIZE, SMALL), nearest(SMALL, SIZE)
        numbers = Image.fromarray(labels).resize((SMALL, SMALL), Image.BILINEAR)
        maps = labels, labels[np.ix_(kept, kept)][np.ix_(back, back)], np.asarray(numbers)[np.ix_(back, back)]
        grey = np.clip(127 + 1500 * offset_maps(instances), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=3)
        for column, picture in zip(found.values(), [*(colour_labels(m, dataset.palette) for m in maps), *grey]):
            column.append(picture)
    return found


if __name__ == "__main__":
    file = Path(__file__).with_name("picture.png")
    draw_columns(columns(open_dataset("toy", None, "val", (SIZE, SIZE))), file)
    print(file)
