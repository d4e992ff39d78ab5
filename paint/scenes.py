"""Label maps to begin with, drawn for any dataset that has their classes."""
from PIL import Image, ImageDraw

import numpy as np

# What a dataset may call a class.
NAMES = {"sky": ("sky", "sky-other"), "grass": ("grass", "terrain"), "water": ("water", "sea", "water-other"),
         "road": ("road",), "mountain": ("mountain",), "sun": ("sun",), "tree": ("tree", "vegetation"),
         "house": ("house", "building"), "car": ("car",), "boat": ("boat",), "person": ("person",)}
OPTIONAL = ("mountain", "sun", "boat")  # a scene is a scene without them
# Back to front: a class, and its parts. A box: left, top, right, bottom; a disc: x, y, radius; a shape: x, y of its
# corners. x and y are shares of the picture, to the right and down; radii are shares of its height.
SCENES = {
    "House and tree": """
        sky: box 0 0 1 1
        sun: disc .82 .16 .07
        mountain: shape -.1 .6 .2 .28 .36 .5 .56 .22 .9 .6
        grass: box 0 .52 1 1
        tree: box .745 .6 .785 .84, disc .765 .48 .15
        house: shape .17 .88 .17 .6 .11 .6 .34 .38 .57 .6 .51 .6 .51 .88""",
    "Lake": """
        sky: box 0 0 1 1
        mountain: shape -.1 .5 .22 .18 .45 .45 .7 .2 1.1 .5
        water: box 0 .44 1 1
        grass: shape 0 .8 .35 .86 .62 1 0 1
        boat: shape .52 .62 .82 .62 .76 .7 .58 .7, shape .65 .6 .65 .36 .79 .58
        tree: box .12 .7 .16 .9, disc .14 .58 .14""",
    "Road": """
        sky: box 0 0 1 1
        sun: disc .2 .2 .07
        grass: box 0 .45 1 1
        road: shape .44 .45 .56 .45 1 1 0 1
        tree: box .08 .5 .115 .68, disc .1 .42 .12
        tree: box .885 .5 .92 .68, disc .9 .42 .12
        car: shape .36 .8 .36 .66 .41 .66 .44 .56 .58 .56 .61 .66 .66 .66 .66 .8"""}


def draw_scenes(classes, size):
    """{name: (labels (H, W) uint8, instances (H, W) uint16)} of the scenes for which `classes` has the names. Every
    line of a scene after the first, its sky, is one instance; the page keeps those of things."""
    known = {name: classes.index(found[0]) for name, called in NAMES.items()
             if (found := [n for n in called if n in classes])}
    scenes, (H, W) = {}, size
    for title, text in SCENES.items():
        lines = [line.strip().split(": ") for line in text.strip().splitlines()]
        if any(name not in known and name not in OPTIONAL for name, _ in lines):
            continue
        labels, instances = Image.new("L", (W, H)), Image.new("I", (W, H))
        for number, (name, parts) in enumerate(lines):
            for kind, *numbers in map(str.split, parts.split(", ") if name in known else ()):
                n = [float(number) for number in numbers]
                if kind == "disc":
                    x, y, r = n[0] * W, n[1] * H, n[2] * H
                    corners = [x - r, y - r, x + r, y + r]
                else:
                    corners = [share * (H if i % 2 else W) for i, share in enumerate(n)]
                for image, value in ((labels, known[name]), (instances, number)):
                    draw = ImageDraw.Draw(image)
                    {"box": draw.rectangle, "disc": draw.ellipse, "shape": draw.polygon}[kind](corners, fill=value)
        scenes[title] = np.array(labels, np.uint8), np.array(instances).astype(np.uint16)
    return scenes
