"""Draw picture.png of lab 02:   python labs/02_rare_classes/picture.py

For each class the share of the images that contain it: of the training images, and of those that rare-class sampling
draws. The toy scenes, and a made-up dataset whose classes are as rare as those of photos. Counted in 20,000 draws.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402, after the line that finds the project
from PIL import Image, ImageDraw  # noqa: E402

from data import RareClassBatches, class_presence, open_dataset, sampling_probabilities  # noqa: E402
from support.pages import save_picture  # noqa: E402

DRAWS, WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 20_000, 430, 250, 52, 40, 22
BEFORE, AFTER = (150, 150, 150), (210, 80, 30)
MADE_UP = np.geomspace(0.9, 0.004, 14)     # f_c of the made-up classes


def shares(presence):
    """(N, C) bool -> the shares of the images and of the drawn images that contain each class, (C,) each."""
    batches = RareClassBatches(sampling_probabilities(presence), 1, 0, DRAWS)
    drawn = [index for (index, _, _), in batches]
    return presence.mean(axis=0), presence[drawn].mean(axis=0)


def bars(draw, left, title, names, presence):
    """One panel: two bars a class, common classes first, over a logarithmic axis from 0.1 % to 100 %."""
    before, after = shares(presence)
    bottom, step = HEIGHT - BOTTOM, (WIDTH - LEFT - 10) / len(names)
    draw.text((left + LEFT, 6), title, fill="black")
    for power, text in ((0, "100 %"), (-1, "10 %"), (-2, "1 %"), (-3, "0.1 %")):
        y = bottom - (power + 3) / 3 * (bottom - TOP)
        draw.line((left + LEFT, y, left + WIDTH - 10, y), fill=(225, 225, 225))
        draw.text((left + 6, y - 6), text, fill="black")
    for place, c in enumerate(np.argsort(-before)):
        for part, share, colour in ((0, before[c], BEFORE), (1, after[c], AFTER)):
            x, y = left + LEFT + (place + 0.1 + 0.4 * part) * step, bottom - (np.log10(share) + 3) / 3 * (bottom - TOP)
            draw.rectangle((x, y, x + 0.4 * step - 1, bottom), fill=colour)
        draw.text((left + LEFT + (place + 0.1) * step, bottom + 6), names[c][:4], fill="black")
    for line, (text, colour) in enumerate((("of the training images", BEFORE), ("of the drawn images", AFTER))):
        draw.text((left + LEFT + 150 * line, 20), text, fill=colour)


if __name__ == "__main__":
    file, toy = Path(__file__).with_name("picture.png"), open_dataset("toy", None, "train", (64, 64))
    made_up = np.random.default_rng(0).random((3000, len(MADE_UP))) < MADE_UP                                # (N, C)
    sheet = Image.new("RGB", (2 * WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    bars(draw, 0, "toy scenes: images with each class", toy.classes, class_presence(toy))
    bars(draw, WIDTH, "a made-up dataset of 3,000 images, 14 classes", [str(c) for c in range(14)], made_up)
    save_picture(sheet.quantize(32), file)
    print(file)
