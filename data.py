"""Datasets: label maps, pictures and instance offsets (Sec. 4.1), and rare-class sampling.

    open_dataset      --dataset NAME -> a dataset; the place where the other benchmarks come in
      ToyScenes       procedural scenes drawn from (seed, index): no download
      Folder          anybody's own data: images/, labels/, optional instances/, classes.txt
    offset_maps       instance ids -> two channels, the way to each instance's centre of mass
    sampling_probabilities, RareClassBatches
                      p proportional to f_k^(-1/2), split over ranks (Sec. 4.1)

A dataset has .classes (names), .palette (C, 3) uint8, .unknown (index or None), .has_instances, and
gives dicts of

    image      (3, H, W) uint8
    label_map  (H, W) uint8, values 0..C-1; one-hot only on the device
    offsets    (2, H, W) float32 in [-1, 1], (dy, dx); only where .has_instances

dataset[i] is sample i as it is; dataset[i, epoch, draw] is augmented, from (seed, epoch, draw) alone.

`python data.py --dataset toy` counts classes and writes a page of samples to look at.
"""
import argparse
import hashlib
import os
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

DATASETS = ("toy", "folder", "ade20k", "cityscapes", "coco_stuff")
TOY_SEED, TOY_TRAIN, TOY_VAL = 0, 2000, 200
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# PAPER: silent on augmentation. / HERE: resize (whatever the aspect) to 286/256 of the size, random crop, flip.
# WHY: OASIS's protocol, which its released code does not follow by accident (one shared option).
RESIZE = 286 / 256
FOLDER_TREE = """\
  DIR/images/train/*.jpg   DIR/images/val/*.jpg    pictures (jpg or png)
  DIR/labels/train/*.png   DIR/labels/val/*.png    same names, 8-bit, value = class
  DIR/classes.txt                                  one class name a line, line number = value from 0;
                                                   a class named "unlabelled" is the unknown one
  DIR/instances/...                                optional, ids 1, 2, ...; 0 = no instance"""


class InputError(Exception):
    """Something of the user's does not fit. The message is one line: what, where, and the remedy."""


# ------------------------------------------------------------------------------------- instance maps

def offset_maps(instances):
    """The way from every instance pixel to its instance's centre of mass (Sec. 4.1, as in [9]).

    instances (H, W) integers, 0 = no instance -> (2, H, W) float32: (dy / H, dx / W), 0 outside.
    Computed after resize, crop and flip, so that a flip negates dx by itself.
    """
    H, W = instances.shape
    _, which, count = np.unique(instances, return_inverse=True, return_counts=True)
    which = which.reshape(-1)                                        # (HW,), 0, 1, ... for each id
    position = np.indices((H, W)).reshape(2, -1)                     # (2, HW), y and x of each pixel
    centre = np.stack([np.bincount(which, weights=p) / count for p in position])  # (2, ids)
    offsets = (centre[:, which] - position) / [[H], [W]]
    return (offsets.reshape(2, H, W) * (instances > 0)).astype(np.float32)


def to_sample(image, labels, instances):
    """Arrays (H, W, 3), (H, W) and (H, W) or None -> the dict that the module docstring describes."""
    sample = {"image": torch.from_numpy(np.array(image.transpose(2, 0, 1))),
              "label_map": torch.from_numpy(np.array(labels))}
    if instances is not None:
        sample["offsets"] = torch.from_numpy(offset_maps(instances))
    return sample


def colour_labels(label_map, palette):
    """label_map (..., H, W) integers, palette (C, 3) uint8 -> (..., H, W, 3) uint8."""
    return np.asarray(palette)[np.asarray(label_map)]


def default_palette(count, unknown):
    """(count, 3) uint8 distinct colours (PASCAL VOC's bit pattern), black for the unknown class."""
    index = np.arange(1, count + 1)[:, None]
    bits = (index >> (3 * np.arange(8)[:, None, None] + np.arange(3))) & 1    # (8, count, 3)
    palette = (bits << (7 - np.arange(8)[:, None, None])).sum(axis=0).astype(np.uint8)
    if unknown is not None:
        palette[unknown] = 0
    return palette


# --------------------------------------------------------------------------------- toy scenes

TOY_CLASSES = ("sky", "mountain", "water", "grass", "road", "tree", "house", "car", "boat",
               "person", "sun")
SKY, MOUNTAIN, WATER, GRASS, ROAD, TREE, HOUSE, CAR, BOAT, PERSON, SUN = range(11)
TOY_PALETTE = np.array([
    (135, 190, 235), (140, 115, 100), (40, 95, 200), (150, 215, 110), (128, 64, 128),
    (25, 115, 45), (205, 100, 60), (0, 0, 142), (240, 235, 225), (220, 20, 60), (255, 215, 0),
], np.uint8)

# A form of thing: class, height when near, half its width over its height, ground it needs,
# most in a scene, parts from back to front. A part: name, then a disc (middle, level, radius)
# or a band (low, high, half width at low, half width at high) or a slanted one
# (low, high, left, right, left at high, right at high). PAIRED parts stand on both sides.
FORMS = tuple((*form[:5], tuple((name, *map(float, numbers)) for name, *numbers in
                                map(str.split, form[5].split(",")))) for form in (
    (CAR, 0.22, 1.12, ROAD, 2,
     "paint .18 .62 1.12 1.06, paint .6 1 -.9 .72 -.62 .36, wheels .64 .22 .24, "
     "glass .62 .9 -.74 -.14 -.56 -.14, glass .62 .9 -.02 .56 -.02 .32"),
    (CAR, 0.22, 0.66, ROAD, 2,
     "wheels 0 .3 .32 .58 .32 .58, paint .12 .62 .64 .6, paint .6 1 .54 .36, "
     "glass .62 .9 .44 .32, lamps .32 .48 .36 .56 .36 .56"),
    (BOAT, 0.36, 0.5, WATER, 2, "hull 0 .2 .28 .46, trunk .15 1 .025 .025, "
     "sail .26 .98 .04 .46 .04 .05, sail .26 .86 -.36 -.05 -.06 -.05"),
    (HOUSE, 0.46, 0.6, GRASS, 1, "wall 0 .56 .46 .46, roof .6 .96 .2 .32 .2 .32, "
     "roof .52 1 .62 0, door 0 .33 .08 .08, panes .2 .42 .18 .35 .18 .35"),
    (TREE, 0.56, 0.37, GRASS, 3,
     "trunk 0 .5 .07 .05, leaves .16 .57 .2, leaves -.16 .58 .2, leaves 0 .74 .25"),
    (HOUSE, 0.4, 0.72, GRASS, 1, "wall 0 .6 .6 .6, roof .58 .96 .74 .42, door 0 .38 .1 .1, "
     "panes .2 .46 .24 .46 .24 .46"),
    (TREE, 0.6, 0.34, GRASS, 3, "trunk 0 .2 .05 .05, needles .12 .55 .33 .08, "
     "needles .38 .78 .26 .06, needles .62 1 .19 0"),
    (PERSON, 0.36, 0.22, GRASS, 2,
     "legs 0 .46 .02 .12 0 .14, shirt .42 .76 .22 .15, hair 0 .88 .12, skin 0 .85 .105")))
SIDE_CAR, FRONT_CAR, PAIRED = 0, 1, ("wheels", "lamps", "panes", "legs")


def _colours(text):
    return np.array([tuple(bytes.fromhex(colour)) for colour in text.split()], np.float32)


PART_COLOURS = {part: _colours(text) for part, text in {
    "trunk": "62442c 523e32", "door": "6e422a 345c54 962a2a", "lamps": "fff0b4",
    "wall": "f0e2c4 c45c46 f6f4ee 96b0c8 ecc468 daa896", "roof": "a83e2c 545464 744834 405c68",
    "panes": "607f9e", "glass": "607f9e", "paint": "d82628 245cce fac222 f0f0f2 1ea082 f0761e",
    "wheels": "222226", "hull": "96482a ececec be282c 243e7a", "sail": "fcfaf2 f6cc78 e85c48",
    "skin": "eec2a0 c48c66 7a523c", "hair": "2e221e 784c28 deb86e",
    "shirt": "e2323c 2868d6 face3c f4f4f4 963caa", "legs": "28345c 3c3c40 785c42"}.items()}
# Colours of the sky overhead, of the sky at the horizon and of the sun; light; lamps lit.
TIMES = tuple((*_colours(sky), np.array(light, np.float32), lit) for sky, light, lit in (
    ("3076d6 b2daf8 fff6be", (1.04, 1.02, 0.96), False),   # noon
    ("5a9ae2 dcecf0 fffad7", (1.00, 1.00, 1.00), False),   # morning
    ("6270ac ffbc64 ffec96", (1.08, 0.90, 0.68), False),   # golden hour
    ("7a7ac4 fcbcbe ffe8cd", (1.02, 0.86, 0.92), False),   # pink dawn
    ("8e98a5 d0d3d6 f6f4e8", (0.80, 0.83, 0.87), False),   # overcast
    ("4a3482 ff885e ffcd78", (0.98, 0.74, 0.72), True),    # sunset
    ("1c4270 78acc0 f0f0d7", (0.62, 0.75, 0.84), True),    # dusk
    ("101a48 465aa0 eef0f8", (0.52, 0.58, 0.80), True)))   # night
# Colours of grass, of two kinds of leaves and of needles; how much snow lies.
SEASONS = tuple((_colours(plants), snow) for plants, snow in (
    ("70ac42 3e8434 60962c 225c3e", 0.0), ("92c454 f0a4be 68a83e 2e6c42", 0.0),  # summer, spring
    ("b0a052 e27a24 ca4228 345c34", 0.0), ("ceb870 7c8a3a 989246 486638", 0.0),  # autumn, drought
    ("e0e6ee 9aaeba 8aa4aa 54787a", 0.6)))                                       # winter
SNOW, MARKING, DEEP_WATER, LAMPLIGHT = _colours("f0f4fa ece6cd 105480 ffd66e")


def _path_position(path, x, y):
    """Position across a road or river, -1..1 between its banks, and distance along it."""
    level, start, far, near, bend, half = path
    nearness = np.clip((y - start) / (1 - start), 1e-6, None)
    if level:
        return (nearness - 0.3 - 0.5 * far - 2 * bend * (x - 0.5)) / half, 5.5 * x
    middle = far + (near - far) * nearness + bend * np.sin(6.5 * np.sqrt(nearness))
    across = (x - middle) / (half * (0.12 + 0.88 * nearness))
    return np.where(y > start, across, 9.0), 3.2 / (nearness + 0.22)


def _ridge(scene, x):
    """Height of the mountains above the horizon at `x`, 0 where there are none."""
    height = np.zeros_like(x)
    for middle, top, slope in scene["peaks"]:
        height = np.maximum(height, top - slope * np.abs(x - middle))
    return height * (1 + 0.06 * np.sin(31 * x) + 0.04 * np.sin(67 * x))


def _stuff_labels(scene, x, y, aspect):
    """Labels, things left out, of the points `x`, `y` in 0..1 (any shapes that broadcast)."""
    labels = np.full(np.broadcast(x, y).shape, SKY, np.uint8)
    sun_x, sun_y, radius = scene["sun"]
    labels[((x - sun_x) * aspect) ** 2 + (y - sun_y) ** 2 < radius ** 2] = SUN
    labels[y > scene["horizon"] - _ridge(scene, x)] = MOUNTAIN
    ground = np.broadcast_to(y >= scene["horizon"], labels.shape)
    labels[ground] = GRASS
    lake_x, lake_y, half_width, half_height = scene["lake"]
    in_lake = ((x - lake_x) / half_width) ** 2 + ((y - lake_y) / half_height) ** 2 < 1
    labels[ground & in_lake] = WATER
    for name, label in (("river", WATER), ("road", ROAD)):
        if scene[name]:
            labels[np.abs(_path_position(scene[name], x, y)[0]) < 1] = label
    return labels


def _draw_scene(seed, index):
    """Everything that decides the label map, in units free of the picture's size."""
    random = np.random.default_rng((seed, index, 0))
    between, horizon = random.uniform, random.uniform(0.36, 0.58)

    def draw_path(level, start, half):
        return (level, start, *between(0.2, 0.8, 2), between(-0.12, 0.12), half)

    # An absent sun or lake lies far outside the picture, which spares special cases later.
    sun_y = horizon * between(0.2, 0.75) if random.random() < 0.7 else -9.0
    scene = {"horizon": horizon, "sun": (between(0.1, 0.9), sun_y, between(0.06, 0.09)),
             "lake": (0, -9, 1, 1), "river": None, "road": None}
    peaks = random.integers(2, 5) if random.random() < 0.72 else 0
    scene["peaks"] = [(between(-0.1, 1.1), horizon * between(0.25, 0.72), between(0.5, 1.2))
                      for _ in range(peaks)]
    water, path_start = random.random(), horizon
    if water < 0.32:  # a sea or a bay, from the horizon on
        depth = (1 - horizon) * between(0.3, 0.5)
        scene["lake"] = (between(0, 1), horizon, between(0.7, 2.5), depth)
        path_start += depth
    elif water < 0.5:
        scene["lake"] = (between(0.1, 0.9), between(horizon + 0.16, 0.86), between(0.3, 0.5),
                         between(0.09, 0.14))
    elif water < 0.68:
        scene["river"] = draw_path(False, horizon, between(0.22, 0.34))
    if random.random() < 0.72:
        scene["road"] = draw_path(random.random() < 0.5, path_start, between(0.18, 0.25))
    scene["things"] = _draw_things(random, scene)
    return scene


def _half_width(thing):
    return thing[3] * FORMS[thing[0]][2]


def _draw_things(random, scene):
    """Things (form, x, foot, size), far ones first, each on the ground that it needs."""
    wrong_car = FRONT_CAR if scene["road"] and scene["road"][0] else SIDE_CAR
    wanted = [number for number, form in enumerate(FORMS) if number != wrong_car
              for _ in range(random.integers(0, form[4] + 1))]
    tries = random.random((3, len(wanted), 16))
    tall, wide, ground = np.array([FORMS[form][1:4] for form in wanted]).reshape(-1, 3).T[..., None]
    x, nearness = 0.06 + 0.88 * tries[0], 0.06 + 0.89 * tries[1]
    foot = scene["horizon"] + (1 - scene["horizon"]) * nearness
    size = tall * (0.5 + 0.5 * nearness) * (0.85 + 0.3 * tries[2])
    edges = x + 0.8 * size * wide * np.array((-1, 0, 1))[:, None, None]
    fits = (_stuff_labels(scene, edges, foot[None], 1.0) == ground).all(axis=0)
    things = []
    for row, form in enumerate(wanted):
        for column in np.flatnonzero(fits[row]):
            thing = (form, x[row, column], foot[row, column], size[row, column])
            if all(abs(thing[1] - other[1]) > 0.55 * (_half_width(thing) + _half_width(other))
                   for other in things):
                things.append(thing)
                break
    return sorted(things, key=lambda thing: thing[2])


def _thing_window(thing, x, y):
    """Slices around a thing in the grid of `x` (1, W) and `y` (H, 1), and its own coordinates
    there in units of its height: `a` (1, w) to the right, `b` (h, 1) upward from its foot."""
    form, middle, foot, size = thing
    a, b = (x - middle) * (x.size / y.size / size), (foot - y) / size
    columns = np.flatnonzero(np.abs(a) < 1.15 * FORMS[form][2])
    rows = np.flatnonzero((b > -0.1) & (b < 1))
    rows, columns = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return (rows, columns), a[:, columns], b[rows]


def _part_mask(part, a, b):
    name, low, high, *sides = part
    a = np.abs(a) if name in PAIRED else a
    if len(sides) == 1:
        return (a - low) ** 2 + (b - high) ** 2 < sides[0] ** 2
    left, right, high_left, high_right = sides if len(sides) == 4 else (
        -sides[0], sides[0], -sides[1], sides[1])
    rise = (b - low) / (high - low)
    inside = (a > left + (high_left - left) * rise) & (a < right + (high_right - right) * rise)
    return inside & (rise > 0) & (rise < 1)


def _grid(height, width):
    """Pixel centres `x` (1, W) and `y` (H, 1) in 0..1."""
    return (np.arange(width)[None] + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height


def toy_layout(seed, index, height, width):
    """Scene `index` of stream `seed`: `labels` (H, W) uint8 in 0..10 and `instances` (H, W)
    uint8, 0 for stuff and 1.. for things. Every size shows the same scene."""
    scene, (x, y) = _draw_scene(seed, index), _grid(height, width)
    labels = _stuff_labels(scene, x, y, width / height)
    instances = np.zeros_like(labels)
    for number, thing in enumerate(scene["things"], 1):
        window, a, b = _thing_window(thing, x, y)
        for part in FORMS[thing[0]][5]:
            mask = _part_mask(part, a, b)
            labels[window][mask], instances[window][mask] = FORMS[thing[0]][0], number
    return labels, instances


def _mix(first, second, share):
    return first + (second - first) * share


def _noise(random, x, y, across, down):
    """Smooth noise (H, W), mostly in -1..1, of at most `across` and `down` periods a unit."""
    speed = random.uniform(-1, 1, (3, 20)).astype(np.float32)
    # sin(p + q) = sin p cos q + cos p sin q turns a sum of plane waves into matrix products.
    p, q = 6.283 * (y * down * speed[0] + speed[2]), 6.283 * x.T * across * speed[1]
    return (np.sin(p) @ np.cos(q).T + np.cos(p) @ np.sin(q).T) * 0.18


def _draw_look(random):
    """Everything that decides the picture of a given label map: time of day, season, paint."""
    top, low, disc, light, lit = TIMES[random.integers(len(TIMES))]
    plants, snow = SEASONS[random.integers(len(SEASONS))]
    shift, paint = random.uniform(-1, 1, (2, 3)).astype(np.float32)
    return {"top": top + 14 * shift, "low": low + 8 * shift, "disc": disc, "lit": lit,
            "light": light * (1 + 0.08 * paint[2]), "grass": plants[0] + 12 * paint, "snow": snow,
            "rock": np.float32((118, 105, 110)) + np.float32((24, 7, -18)) * paint[0],
            "asphalt": np.float32((98, 94, 95)) + 22 * paint[1], "cloud": random.random(),
            "parts": dict(PART_COLOURS, leaves=plants[1:3], needles=plants[3:],
                          roof=_mix(PART_COLOURS["roof"], SNOW, snow))}


def _paint_sky(scene, look, random, x, y, aspect):
    sky = _mix(look["top"], look["low"], (y / scene["horizon"])[..., None] ** 1.4)
    clouds = _noise(random, x * aspect, y, 2.5, 6) + 0.3 * _noise(random, x * aspect, y, 6, 12)
    clouds = np.clip(0.8 * clouds + look["cloud"] - 0.7, 0, 0.8)[..., None]
    sky = _mix(sky, _mix(look["low"], look["disc"], 0.5), clouds)
    sun_x, sun_y, radius = scene["sun"]
    distance = np.sqrt(((x - sun_x) * aspect) ** 2 + (y - sun_y) ** 2)[..., None]
    sky = _mix(sky, look["disc"], 0.7 * np.clip(1 - distance / 0.4, 0, 1) ** 2)
    return np.where(distance < radius, look["disc"], sky)


def _paint_mountain(scene, look, rough, x, y):
    # Shifting x by noise bends the line between the lit and the dark face of each peak.
    bent = x + 0.025 * rough
    rise = np.clip(60 * (_ridge(scene, bent + 0.01) - _ridge(scene, bent - 0.01)), -1, 1)
    height = 1 - y / scene["horizon"]
    snow = np.clip(12 * (height - 0.42 + 0.3 * look["snow"] + 0.08 * rough), 0, 1)
    colour = _mix(look["rock"], SNOW, snow[..., None]) * look["light"]
    colour *= (1 + 0.2 * np.where(x < scene["sun"][0], -rise, rise))[..., None]
    return _mix(colour, look["low"], 0.4 * np.clip(1 - 1.6 * height, 0, 1)[..., None])


def _paint_water(scene, look, random, x, y):
    away = (y - scene["horizon"]) / (1 - scene["horizon"])
    colour = _mix(look["low"], look["top"], np.clip(1.6 * away, 0, 1)[..., None])
    colour = _mix(colour, DEEP_WATER * look["light"], 0.45)
    # The root crowds the ripples towards the horizon.
    ripples = _noise(random, x, np.sqrt(away + 0.02), 4, 16)
    glint = np.exp(-((x - scene["sun"][0]) / 0.09) ** 2) * (scene["sun"][1] > 0)
    glint = glint * np.clip(0.35 + 0.6 * ripples, 0, 0.9)
    return _mix(colour * (1 + 0.17 * ripples)[..., None], look["disc"], glint[..., None])


def _paint_road(scene, look, rough, x, y):
    across, along = _path_position(scene["road"], x, y)
    lines = (np.abs(across) < 0.07) & (along % 1 < 0.55) | (np.abs(np.abs(across) - 0.86) < 0.05)
    colour = look["asphalt"] * (1 + 0.06 * rough[..., None])
    return np.where(lines[..., None], MARKING, colour) * look["light"]


def _paint_thing(canvas, thing, scene, look, random, rough, x, y):
    """Paints a thing, and the soft shadow at its foot, into `canvas` (H, W, 3) in place."""
    window, a, b = _thing_window(thing, x, y)
    box, across = canvas[window], a / FORMS[thing[0]][2]
    side = np.clip(5 * (scene["sun"][0] - thing[1]), -1, 1)
    shadow = np.clip(1.2 - ((across + 0.25 * side) / 0.9) ** 2 - (b / 0.09) ** 2, 0, 1)
    box *= 1 - 0.42 * shadow[..., None]
    even = 1 + 0.2 * side * across
    leafy = 0.6 + 0.4 * b + 0.25 * side * across + 0.16 * rough[window]
    chosen = {name: colours[random.integers(len(colours))] * look["light"]
              for name, colours in look["parts"].items()}
    for part in FORMS[thing[0]][5]:
        shade = leafy if part[0] in ("leaves", "needles") else even
        colour = shade[..., None] * chosen[part[0]]
        if part[0] in ("panes", "lamps") and look["lit"]:
            colour = LAMPLIGHT
        np.copyto(box, colour, where=_part_mask(part, a, b)[..., None])


def _paint(scene, look, random, height, width):
    """The picture (height, width, 3) float32 of about 0..255, not yet clipped."""
    x, y = (axis.astype(np.float32) for axis in _grid(height, width))
    aspect, skyline = width / height, int(np.sum(y < scene["horizon"]))
    labels, rough = _stuff_labels(scene, x, y, aspect), _noise(random, x * aspect, y, 10, 12)
    canvas = np.empty((height, width, 3), np.float32)
    above, below = slice(0, skyline), slice(skyline, height)
    canvas[above] = _paint_sky(scene, look, random, x, y[above], aspect)
    canvas[below] = look["grass"] * look["light"] * (1 + 0.08 * rough[below, :, None])
    for label, rows, painter, texture in ((MOUNTAIN, above, _paint_mountain, rough[above]),
                                          (WATER, below, _paint_water, random),
                                          (ROAD, below, _paint_road, rough[below])):
        mask = (labels[rows] == label)[..., None]
        if mask.any():
            np.copyto(canvas[rows], painter(scene, look, texture, x, y[rows]), where=mask)
    for thing in scene["things"]:
        _paint_thing(canvas, thing, scene, look, random, rough, x, y)
    return canvas


def toy_scene(seed, index, height=64, width=64, appearance=0):
    """`image` (H, W, 3) uint8, `labels` and `instances` as `toy_layout`. `appearance` redraws
    time of day, season, colours and texture only: one label map has many right pictures."""
    random = np.random.default_rng((seed, index, 1 + appearance))
    # Painted at twice the size and averaged: soft edges, while the labels stay exact.
    fine = _paint(_draw_scene(seed, index), _draw_look(random), random, 2 * height, 2 * width)
    image = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4
    return (np.clip(image + 0.5, 0, 255).astype(np.uint8), *toy_layout(seed, index, height, width))


class ToyScenes:
    """2,000 training and 200 validation scenes, drawn when asked for, the same on every machine.

    image_size: (H, W). The one augmentation is a flip.
    """

    def __init__(self, split, image_size, seed=0):
        self.classes, self.palette, self.unknown, self.has_instances = TOY_CLASSES, TOY_PALETTE, None, True
        self.image_size, self.seed = image_size, seed
        self.first, self.count = {"train": (0, TOY_TRAIN), "val": (TOY_TRAIN, TOY_VAL)}[split]
        self.names = [f"{split}{i:04d}" for i in range(self.count)]

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        index, *draw = key if isinstance(key, tuple) else (key,)
        scene = toy_scene(TOY_SEED, self.first + index, *self.image_size)
        if draw and np.random.default_rng((self.seed, *draw)).random() < 0.5:
            scene = [plane[:, ::-1] for plane in scene]
        return to_sample(*scene)

    def presence(self, index):
        """(C,) bool: the classes of scene `index`."""
        labels, _ = toy_layout(TOY_SEED, self.first + index, 64, 64)
        return np.bincount(labels.ravel(), minlength=len(self.classes)) > 0

    def fingerprint(self):
        return f"toy {TOY_SEED} {self.first} {self.count}"


# --------------------------------------------------------------------------------------- your own data

class Folder:
    """Pictures and label maps in the generic layout (FOLDER_TREE), any sizes, resized to image_size.

    Raises InputError for a missing tree or partner here; for a file that cannot be read, sizes that
    differ and label values beyond classes.txt when the file is read.
    """

    def __init__(self, path, split, image_size, seed=0):
        path = Path(path)
        if not (path / "classes.txt").is_file():
            raise InputError(f"{path}: no classes.txt there. --dataset folder expects\n{FOLDER_TREE}")
        try:
            lines = (path / "classes.txt").read_text(encoding="utf-8-sig").rstrip().split("\n")
        except UnicodeDecodeError:
            raise InputError(f"{path / 'classes.txt'}: not UTF-8 text; save it as UTF-8") from None
        self.classes = tuple(name.strip() for name in lines)
        if not all(self.classes) or len(self.classes) > 256:
            raise InputError(f"{path / 'classes.txt'}: expected 1 to 256 lines with a class name each, found "
                             f"{len(self.classes)} lines, {self.classes.count('')} of them empty")
        unknown = [c for c, name in enumerate(self.classes) if name.lower() in ("unlabelled", "unlabeled")]
        self.unknown = unknown[0] if unknown else None
        self.palette = default_palette(len(self.classes), self.unknown)
        self.image_size, self.seed = image_size, seed

        files = {}
        for kind, endings in (("images", IMAGE_ENDINGS), ("labels", (".png",)), ("instances", (".png",))):
            files[kind] = {}
            for file in sorted((path / kind / split).glob("*")):
                if file.suffix.lower() in endings:
                    if file.stem in files[kind]:
                        raise InputError(f"{file}: {files[kind][file.stem].name} has the same name; remove one of them")
                    files[kind][file.stem] = file
        self.has_instances = (path / "instances").is_dir()
        if not files["images"]:
            raise InputError(f"{path / 'images' / split}: no pictures there. --dataset folder expects\n{FOLDER_TREE}")
        for kind, partner in (("images", "labels"), ("labels", "images"), ("images", "instances")):
            alone = sorted(files[kind].keys() - files[partner].keys())
            if alone and (partner != "instances" or self.has_instances):
                raise InputError(f"{files[kind][alone[0]]}: no file of that name in {path / partner / split} "
                                 f"({len(alone)} such files); add its partner or remove it")
        self.names = sorted(files["images"])
        self.files = [tuple(files[kind].get(name) for kind in ("images", "labels", "instances"))
                      for name in self.names]

    def __len__(self):
        return len(self.names)

    def _labels(self, index):
        _, file, _ = self.files[index]
        return check_labels(open_picture(file), file, len(self.classes))

    def __getitem__(self, key):
        index, *draw = key if isinstance(key, tuple) else (key,)
        image_file, label_file, instance_file = self.files[index]
        image = ImageOps.exif_transpose(open_picture(image_file))
        if image.mode[0] in "IF":
            raise InputError(f"{image_file}: a picture of mode {image.mode}; expected 8 bits a channel, convert it")
        image, labels = image.convert("RGB"), self._labels(index)
        instances = check_instances(open_picture(instance_file), instance_file) if self.has_instances else None
        for other, file in ((labels, label_file), (instances, instance_file)):
            if other is not None and other.size != image.size:
                raise InputError(f"{file} is {other.size[0]}x{other.size[1]} but {image_file} is "
                                 f"{image.size[0]}x{image.size[1]}; the two must have the same size")
        H, W = self.image_size
        load_h, load_w = (round(H * RESIZE), round(W * RESIZE)) if draw else (H, W)
        planes = [np.asarray(image.resize((load_w, load_h), Image.BICUBIC)),
                  np.asarray(labels.resize((load_w, load_h), Image.NEAREST))]
        if instances is not None:
            planes.append(np.asarray(instances.resize((load_w, load_h), Image.NEAREST)))
        if draw:
            rng = np.random.default_rng((self.seed, *draw))
            top, left = rng.integers(load_h - H + 1), rng.integers(load_w - W + 1)
            planes = [plane[top:top + H, left:left + W] for plane in planes]
            if rng.random() < 0.5:
                planes = [plane[:, ::-1] for plane in planes]
        return to_sample(*planes, *([None] if instances is None else []))

    def presence(self, index):
        """(C,) bool: the classes of picture `index`."""
        return np.bincount(np.asarray(self._labels(index)).ravel(), minlength=len(self.classes)) > 0

    def fingerprint(self):
        return "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for _, file, _ in self.files)


def open_picture(file):
    """A PIL image, read to its end. Raises InputError."""
    try:
        with Image.open(file) as image:
            image.load()  # a truncated file fails here, not later
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: cannot be read as a picture ({error}); replace or remove it") from None


def check_instances(image, file):
    """An instance map as it is. Raises InputError where it has several channels."""
    if len(image.getbands()) > 1:
        raise InputError(f"{file}: an instance map must have one channel with ids, this one is {image.mode}; "
                         f"save it as an 8-bit or 16-bit greyscale PNG")
    return image


def check_labels(image, file, classes):
    """The label map in a PIL image, palette indices as they are. Raises InputError for other formats,
    and for values that are no class, with the values listed."""
    if image.mode not in ("L", "P", "I;16", "I", "1"):
        raise InputError(f"{file}: a label map must have one channel with class numbers, this one is "
                         f"{image.mode}; save it as an 8-bit greyscale or palette PNG")
    values = np.unique(np.asarray(image))
    if values[-1] >= classes or values[0] < 0:
        strange = [int(v) for v in values if not 0 <= v < classes]
        raise InputError(f"{file}: label values {strange} are no class, expected 0..{classes - 1} "
                         f"({classes} classes are known); correct the label map or the class list")
    return Image.fromarray(np.asarray(image).astype(np.uint8))


def open_dataset(name, path, split, image_size, seed=0):
    """--dataset NAME -> a dataset (see the module docstring). image_size: (H, W). split: "train" or "val"."""
    if name == "toy":
        return ToyScenes(split, image_size, seed)
    if name not in DATASETS:
        raise InputError(f"--dataset {name} is unknown; choose from {', '.join(DATASETS)}")
    if name != "folder":
        # ade20k, cityscapes and coco_stuff come in here, each a class beside Folder
        raise InputError(f"--dataset {name} cannot be read in its official layout yet; lay it out as follows "
                         f"and use --dataset folder\n{FOLDER_TREE}")
    if path is None:
        raise InputError(f"--dataset folder needs --data-path DIR with\n{FOLDER_TREE}")
    return Folder(path, split, image_size, seed)


# --------------------------------------------------------------------------------- rare-class sampling

def class_presence(dataset, cache=None):
    """(N, C) bool: which classes each sample contains. Every label map is read, and so checked, once.

    cache: a file beside the run; it is used again while the list of label files stays the same.
    """
    key = hashlib.sha256((dataset.fingerprint() + repr(dataset.classes)).encode()).hexdigest()
    if cache is not None and Path(cache).is_file():
        try:
            with np.load(cache) as saved:
                if str(saved["key"]) == key:
                    return saved["presence"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # damaged: read the label maps again
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        presence = np.stack(list(tqdm(
            pool.map(dataset.presence, range(len(dataset))), total=len(dataset), leave=False,
            desc="reading label maps", disable=None)))
    if cache is not None:
        temporary = Path(f"{cache}.tmp.npz")
        np.savez(temporary, key=key, presence=presence)
        os.replace(temporary, cache)
    return presence


def sampling_probabilities(presence, unknown=None):
    """p of each image, proportional to f_k^(-1/2) (Sec. 4.1, "favoring rare classes"). (N, C) -> (N,) float64.

    f_c: share of the images in which class c appears; k: the rarest class of the image. PAPER: silent on
    unknown pixels. / HERE: they are no class; an image of nothing else counts as f_k = 1.
    """
    presence = np.array(presence, dtype=bool)
    if unknown is not None:
        presence[:, unknown] = False
    f = presence.mean(axis=0)                                        # (C,)
    f_k = np.where(presence, f, 1.0).min(axis=1)                     # (N,)
    p = f_k ** -0.5
    return p / p.sum()


class RareClassBatches:
    """Batch sampler: for every step this rank's part of the global batch, as (index, epoch, draw).

    The draws are one sequence, a function of the seed alone, whatever the ranks: draw n belongs to step
    n // batch_size. An epoch is N draws with replacement. Steps first_step .. last_step - 1.
    """

    def __init__(self, probabilities, batch_size, first_step, last_step, seed=0, rank=0, world=1):
        self.p, self.batch_size, self.seed = probabilities, batch_size, seed
        self.steps, self.rank, self.per_rank = range(first_step, last_step), rank, batch_size // world

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        N, epoch, order = len(self.p), None, None
        for step in self.steps:
            first = step * self.batch_size + self.rank * self.per_rank
            batch = []
            for n in range(first, first + self.per_rank):
                if n // N != epoch:
                    epoch = n // N
                    order = np.random.default_rng((self.seed, epoch, N)).choice(N, size=N, p=self.p)
                batch.append((int(order[n % N]), epoch, n % N))
            yield batch


# ---------------------------------------------------------------------------------- a look at the data

def main():
    parser = argparse.ArgumentParser(description="Count the classes of a dataset and draw a page of its samples.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="toy")
    parser.add_argument("--data-path", help="folder of the dataset; not needed for toy")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--image-size", type=parse_size, default="64", help="height x width, as 64 or 256x512")
    parser.add_argument("--output", default="data.png", help="the page of samples: picture | labels | offsets")
    args = parser.parse_args()
    dataset = open_dataset(args.dataset, args.data_path, args.split, args.image_size)
    presence = class_presence(dataset)
    print(f"{args.dataset} {args.split}: {len(dataset)} samples, {len(dataset.classes)} classes, instances: "
          f"{'yes' if dataset.has_instances else 'no'}, unknown class: {dataset.unknown}")
    for c, name in enumerate(dataset.classes):
        print(f"  {c:3d} {name:<16} in {presence[:, c].mean():6.1%} of the samples"
              + ("" if presence[:, c].any() else "   <- never seen"))
    rows = []
    for i in range(min(6, len(dataset))):
        sample = dataset[i]
        picture = sample["image"].permute(1, 2, 0).numpy()
        row = [picture, colour_labels(sample["label_map"], dataset.palette)]
        if dataset.has_instances:
            dy, dx = sample["offsets"].numpy()
            row.append(np.stack([127.5 + 127 * 3 * np.clip(dy, -1/3, 1/3), 127.5 + 127 * 3 * np.clip(dx, -1/3, 1/3),
                                 np.full_like(dx, 127.5)], axis=2).astype(np.uint8))
        rows.append(np.concatenate(row, axis=1))
    try:
        Image.fromarray(np.concatenate(rows)).save(args.output)
    except (OSError, ValueError) as error:
        raise InputError(f"--output {args.output}: cannot be written ({error}); give a PNG in a folder that exists") from None
    print(f"page of samples: {args.output}")


def parse_size(text):
    """"64" or "256x512" (height x width) -> (H, W)."""
    sides = [int(side) if side.isdecimal() else 0 for side in str(text).lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a side such as 256, or height x width as 256x512")
    return (sides[0], sides[-1])


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"data.py: {error}", file=sys.stderr)
        sys.exit(2)
