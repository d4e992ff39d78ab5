"""Datasets: label maps, pictures and instance offsets (Sec. 4.1), and rare-class sampling.

    open_dataset      --dataset NAME -> a dataset
      ToyScenes       procedural scenes drawn from (seed, index): no download
      Pictures        files, opened by open_ade20k, open_cityscapes, open_coco_stuff (their official layouts) and
                      open_folder (anybody's own data)
    offset_maps       instance ids -> two channels, the way to each instance's centre of mass
    sampling_probabilities, RareClassBatches
                      p proportional to f_k^(-1/2), split over ranks (Sec. 4.1)

A dataset has .classes (names), .palette (C, 3) uint8, .unknown (index or None), .has_instances, .score_ids, and
gives dicts of

    image      (3, H, W) uint8
    label_map  (H, W) uint8, values 0..C-1; one-hot only on the device
    offsets    (2, H, W) float32 in [-1, 1], (dy, dx); only where .has_instances

dataset[i] is sample i as it is; dataset[i, epoch, draw] is augmented, from (seed, epoch, draw) alone.

`python data.py --dataset NAME --data-path DIR` checks every file and draws a page of samples: run it before you train.
"""
import argparse
import hashlib
import json
import os
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

DATASETS = ("toy", "folder", "ade20k", "cityscapes", "coco_stuff")
TOY_SEED, TOY_TRAIN, TOY_VAL = 0, 2000, 200
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# PAPER: silent on augmentation. / HERE: resize (whatever the aspect; pictures bicubic with antialiasing, labels
# nearest) to 286/256 of the size, random crop, flip. / WHY: OASIS's protocol, which its released code misses by accident.
RESIZE = 286 / 256
TREES = {
    "ade20k": """\
  DIR/images/training/*.jpg       DIR/images/validation/*.jpg         20,210 and 2,000 pictures
  DIR/annotations/training/*.png  DIR/annotations/validation/*.png    same names, 0 = unlabelled, 1..150
as ADEChallengeData2016.zip unpacks; from http://sceneparsing.csail.mit.edu""",
    "cityscapes": """\
  DIR/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png                  2,975 and 500 pictures
  DIR/gtFine/{train,val}/CITY/*_gtFine_labelIds.png                   0..33, 255 = license plate
  DIR/gtFine/{train,val}/CITY/*_gtFine_instanceIds.png
as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack; from https://www.cityscapes-dataset.com""",
    "coco_stuff": """\
  DIR/train_img/*.jpg  DIR/train_label/*.png  DIR/train_inst/*.png    SPADE's layout, and the same with val_; or
  DIR/{train,val}2017/*.jpg                                           118,287 and 5,000 pictures
  DIR/stuffthingmaps/{train,val}2017/*.png                            same names, 0..181, 255 = unlabelled
  DIR/annotations/instances_{train,val}2017.json
as train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org and
stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff unpack""",
    "folder": """\
  DIR/images/train/*.jpg   DIR/images/val/*.jpg    pictures (jpg or png)
  DIR/labels/train/*.png   DIR/labels/val/*.png    same names, 8-bit, value = class
  DIR/classes.txt                                  one class name a line, line number = value from 0;
                                                   a class named "unlabelled" is the unknown one
  DIR/palette.txt                                  only where label maps are coloured: "R G B" a line, as classes.txt
  DIR/instances/...                                optional, ids 1, 2, ...; 0 = no instance""",
}


class InputError(Exception):
    """Something of the user's does not fit. The message is one line: what, where, and the remedy."""


# ------------------------------------------------------------------------------------- instance maps

def offset_maps(instances):
    """The way from every instance pixel to its instance's centre of mass (Sec. 4.1, as in [9]).

    instances (H, W) integers, 0 = no instance -> (2, H, W) float32: (dy / H, dx / W), 0 outside.
    Computed after resize, crop and flip, so that a flip negates dx by itself.
    """
    H, W = instances.shape
    inside = np.flatnonzero(instances)                               # (n,) pixels of instances
    _, which, count = np.unique(instances.reshape(-1)[inside], return_inverse=True, return_counts=True)
    position = np.stack(np.divmod(inside, W)).astype(np.float64)     # (2, n), y and x of each
    centre = np.stack([np.bincount(which.reshape(-1), weights=p) / count for p in position])   # (2, ids)
    offsets = np.zeros((2, H * W), np.float32)
    offsets[:, inside] = (centre[:, which.reshape(-1)] - position) / [[H], [W]]
    return offsets.reshape(2, H, W)


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
        self.score_ids = np.arange(len(TOY_CLASSES))
        self.image_size, self.seed = image_size, seed
        self.first, self.count = {"train": (0, TOY_TRAIN), "val": (TOY_TRAIN, TOY_VAL)}[split]
        self.names = [f"{split}{i:04d}" for i in range(self.count)]

    def __len__(self):
        return self.count

    def load(self, index):
        """Scene `index`: image (H, W, 3) uint8, labels (H, W) uint8, instances (H, W) uint8, 0 = none."""
        return toy_scene(TOY_SEED, self.first + index, *self.image_size)

    def planes(self, key):
        """load(), flipped or not for a training key (index, epoch, draw)."""
        index, *draw = key if isinstance(key, tuple) else (key,)
        flipped = draw and np.random.default_rng((self.seed, *draw)).random() < 0.5
        return tuple(plane[:, ::-1] if flipped else plane for plane in self.load(index))

    def __getitem__(self, key):
        image, labels, instances = self.planes(key)
        return to_sample(image, labels, instances if self.has_instances else None)

    def presence(self, index):
        """(C,) bool: the classes of scene `index`."""
        labels, _ = toy_layout(TOY_SEED, self.first + index, 64, 64)
        return np.bincount(labels.ravel(), minlength=len(self.classes)) > 0

    def fingerprint(self):
        return f"toy {TOY_SEED} {self.first} {self.count}"


# ------------------------------------------------------------------------- pictures and label maps on disk

class Pictures:
    """Pictures and label maps on disk, of any sizes, resized to image_size. Made by the open_* functions below.

    files       [(picture, label map, instance map or None), ...] and their `names`
    class_of    (256,) int16: the class that each value of a label file means, -1 where it means none
    colours     (C, 3) uint8: where a label file is RGB, the colour of each class; None where it must not be
    instances   what the instance files hold: "ids", "cityscapes", "spade"; a dict of read_coco_instances; or None
    margin      training pictures are resized to `margin` of image_size and cropped; 1 resizes only
    upright     turn pictures as their camera's rotation flag says. TRAP: the benchmarks' label maps follow the stored
                pixels; people who draw their own follow what a viewer shows them
    score_ids   (C,) integers: the id under which the benchmark scores each class, -1 = not scored

    Raises InputError, when a sample is read, for a file that cannot be read, sizes that differ, and label values
    that mean no class.
    """

    def __init__(self, files, names, classes, palette, unknown, image_size, seed, class_of, colours=None,
                 instances=None, margin=RESIZE, score_ids=None, upright=False):
        self.files, self.names, self.classes, self.palette, self.unknown = files, names, classes, palette, unknown
        self.image_size, self.seed, self.class_of, self.colours = image_size, seed, class_of, colours
        self.instances, self.has_instances = instances, instances is not None
        self.margin, self.upright = margin, upright
        self.score_ids = np.arange(len(classes)) if score_ids is None else score_ids
        if score_ids is None and unknown is not None:
            self.score_ids[unknown] = -1

    def __len__(self):
        return len(self.files)

    def load(self, index):
        """Sample `index` as it lies on disk: (h, w, 3) uint8, (h, w) uint8 classes, (h, w) ids (0 = none) or None."""
        image_file, label_file, instance_file = self.files[index]
        image, labels, instances = open_picture(image_file), self.labels(index), None
        if image.mode[0] in "IF":
            raise InputError(f"{image_file}: a picture of mode {image.mode}; expected 8 bits a channel, convert it")
        image = ImageOps.exif_transpose(image) if self.upright else image
        image = np.asarray(image.convert("RGB"))                           # (h, w, 3); greyscale and CMYK too
        if isinstance(self.instances, dict):
            instances = paint_coco_instances(self.instances, index, labels, image_file)
        elif self.instances:
            instances = read_instances(instance_file)
            if self.instances == "cityscapes" and instances.dtype == np.uint8:
                raise InputError(f"{instance_file}: an 8-bit file; expected Cityscapes' 16-bit ids, 8 bits have clipped them")
        for plane, file in ((labels, label_file), (instances, instance_file)):
            if plane is not None and plane.shape != image.shape[:2]:
                raise InputError(f"{file} is {plane.shape[1]}x{plane.shape[0]} but {image_file} is "
                                 f"{image.shape[1]}x{image.shape[0]}; the two must have the same size")
        return image, labels, instance_ids(instances, labels, self.instances)

    def labels(self, index):
        """(h, w) uint8 classes of sample `index`, at the size of its file."""
        return read_labels(self.files[index][1], self.class_of, self.colours)

    def planes(self, key):
        """load() at image_size: resized, and for a training key (index, epoch, draw) cropped and flipped."""
        index, *draw = key if isinstance(key, tuple) else (key,)
        image, labels, instances = self.load(index)
        H, W = self.image_size
        h, w = (round(H * self.margin), round(W * self.margin)) if draw else (H, W)
        image = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC))         # (h, w, 3)
        rows, columns = nearest(labels.shape[0], h), nearest(labels.shape[1], w)         # (h,), (w,)
        if draw:
            rng = np.random.default_rng((self.seed, *draw))
            top, left = rng.integers(h - H + 1), rng.integers(w - W + 1)
            image, rows, columns = image[top:top + H, left:left + W], rows[top:top + H], columns[left:left + W]
            if rng.random() < 0.5:
                image, columns = image[:, ::-1], columns[::-1]
        window = np.ix_(rows, columns)
        return image, labels[window], None if instances is None else instances[window]  # (H, W, 3), (H, W), (H, W)

    def __getitem__(self, key):
        return to_sample(*self.planes(key))

    def presence(self, index):
        """(C,) bool: the classes of picture `index`."""
        return np.bincount(self.labels(index).ravel(), minlength=len(self.classes)) > 0

    def fingerprint(self):
        """A text that changes with the list of files, their sizes and their times."""
        lines = [repr(None if self.colours is None else self.colours.tolist())]
        for file in (file for files in self.files for file in files[:2]):
            try:
                stat = file.stat()
            except OSError as error:
                raise InputError(f"{file}: cannot be read ({error.strerror}); replace or remove it") from None
            lines.append(f"{file} {stat.st_size} {stat.st_mtime_ns}")
        return "\n".join(lines)


def nearest(old, new):
    """(new,) the positions, of `old` many, that nearest-neighbour resizing keeps."""
    return (np.arange(new) * 2 + 1) * old // (2 * new)


def open_picture(file):
    """A PIL image, read to its end. Raises InputError."""
    try:
        with Image.open(file) as image:
            image.info["scaled"] = bool(image.tile) and image.tile[0][3] in ("L;2", "L;4")  # a grey PNG of 2 or 4 bits
            image.load()  # a truncated file fails here, not later
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: cannot be read as a picture ({error}); replace or remove it") from None


def read_instances(file):
    """An instance map (h, w) with its ids as they are, 8 or 16 bits. Raises InputError."""
    image = open_picture(file)
    if len(image.getbands()) > 1 or image.mode == "F":
        raise InputError(f"{file}: an instance map must have one channel with ids, this one is {image.mode}; "
                         f"save it as an 8-bit or 16-bit greyscale PNG")
    return np.asarray(image)


def instance_ids(instances, labels, rule):
    """What a benchmark's instance map (h, w) means, beside its label map (h, w): (h, w) ids, 0 = no instance."""
    if rule == "cityscapes":    # labelId * 1000 + n; crowds and stuff have the plain labelId
        return np.where(instances >= 1000, instances, 0)
    if rule == "spade":
        # Made by writing 0, 1, 2, ... into a copy of the label map, so an id may equal a label. TRAP: id 0 is the first
        # instance, stuff keeps its label, and things outside every outline (crowds) keep theirs.
        return np.where(labels < COCO_THINGS, 1 + 2 * instances.astype(np.int32) + (instances == labels), 0)
    return instances


def read_labels(file, class_of, colours=None):
    """A label map (h, w) uint8 with a class at each pixel. class_of, colours: see Pictures.

    Palette PNGs count by their indices, with a palette.txt by their colours. Raises InputError for other formats, and
    for values or colours that are no class, which it lists.
    """
    image = open_picture(file)
    C = int(class_of.max()) + 1
    if image.info["scaled"]:
        raise InputError(f"{file}: a greyscale PNG of 2 or 4 bits, whose values are spread to 0..255 in reading; save it "
                         f"with 8 bits")
    if image.mode == "P" and colours is not None:
        image = image.convert("RGB")  # made smaller by some tool; its colours are what palette.txt is about
    if image.mode == "RGB" and colours is not None:
        pixels, codes = (np.asarray(t).astype(np.int32) @ (65536, 256, 1) for t in (image, colours))  # (h, w), (C,)
        order = np.argsort(codes)
        place = order[np.searchsorted(codes[order], pixels).clip(max=C - 1)]                          # (h, w)
        strange = np.unique(pixels[codes[place] != pixels])
        if len(strange):
            raise InputError(f"{file}: colours {[(c >> 16, c >> 8 & 255, c & 255) for c in strange[:8].tolist()]} "
                             f"({len(strange)} in all) are no class's colour in the palette; add them to it, or save the "
                             f"label map without smoothing or JPEG compression")
        return place.astype(np.uint8)
    if image.mode not in ("L", "P", "I;16", "I", "1"):
        raise InputError(f"{file}: a label map must have one channel with class numbers, this one is {image.mode}; "
                         f"save it as an 8-bit greyscale or palette PNG" + (", or say in palette.txt which colour is "
                         "which class" if image.mode == "RGB" else ""))
    values = np.asarray(image)
    seen = np.flatnonzero(image.histogram()) if image.mode in "LP" else np.unique(values).astype(np.int64)
    strange = [int(v) for v in seen if not (0 <= v < 256 and class_of[v] >= 0)]
    if strange:
        known = np.flatnonzero(class_of >= 0)
        gaps = [0, *(np.flatnonzero(np.diff(known) > 1) + 1), len(known)]
        ranges = [f"{known[a]}..{known[b - 1]}" if b - a > 1 else f"{known[a]}" for a, b in zip(gaps, gaps[1:])]
        raise InputError(f"{file}: label values {strange[:16]} are no class, expected {', '.join(ranges)} ({C} classes "
                         f"are known); correct the label map or the class list")
    values = values.astype(np.uint8)
    return values if (class_of[seen] == seen).all() else class_of.astype(np.uint8)[values]  # (h, w)


def match(files, name, path):
    """{where: {name: file}} of one split of dataset `name` -> ([(a file of each where), ...], sorted names).

    Raises InputError where there are no files, or a name has no partner, with how many such there are."""
    for where, found in files.items():
        if not found:
            what = "pictures" if where == next(iter(files)) else "label or instance maps"
            raise not_there(name, path, f"{where}: no {what} there")
    for here in files:
        for there in files:
            alone = sorted(files[here].keys() - files[there].keys())
            if alone:
                some = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
                raise InputError(f"{files[here][alone[0]]}: no file of that name in {there} ({len(alone)} such files: "
                                 f"{some}); add its partner or remove it")
    names = sorted(next(iter(files.values())))
    return [tuple(of[name] for of in files.values()) for name in names], names


def listed(folder, endings, suffix=""):
    """{name: file} of a folder, the names without `suffix` and ending, hidden files left out.

    Raises InputError for two of a name."""
    files = {}
    for file in sorted(folder.glob("*")):
        name = file.stem.removesuffix(suffix)
        if file.suffix.lower() not in endings or not file.stem.endswith(suffix) or file.name.startswith("."):
            continue
        if name in files:
            raise InputError(f"{file}: {files[name].name} has the same name; remove one of them")
        files[name] = file
    return files


def first_of(root, *folders):
    """The first of the folders that is there, or the first."""
    return next((root / f for f in folders if (root / f).is_dir()), root / folders[0])


def not_there(name, path, what):
    """InputError: `what` is missing under `path`; the tree that is expected and where it comes from."""
    marks = {"ade20k": ["annotations"], "cityscapes": ["gtFine"], "coco_stuff": ["stuffthingmaps", "train_img", "val_img"],
             "folder": ["labels"]}[name]
    inside = [folder for folder in (sorted(Path(path).glob("*/")) if Path(path).is_dir() else ())
              if any((folder / mark).is_dir() for mark in marks)]
    hint = f"; {inside[0]} looks like it: give --data-path {inside[0]}" if inside else ""
    return InputError(f"{what}{hint}. --dataset {name} expects\n{TREES[name]}")


INSTANCE_RULES = {"cityscapes": "cityscapes", "coco_stuff": "spade", "folder": "ids", "toy": "ids"}  # of instance maps


def classes_of_values(name, num_classes):
    """The class of each value in dataset `name`'s label files: (256,) int16, -1 = none."""
    class_of = np.full(256, -1, np.int16)
    class_of[:num_classes] = np.arange(num_classes)
    if name in ("cityscapes", "coco_stuff"):  # the licence plate (-1 as 8 bits), and the unlabelled pixels
        class_of[[num_classes - 1, 255]] = -1, num_classes - 1
    return class_of


# ------------------------------------------------------------------------------------------ the benchmarks

def _names(text):
    return tuple(" ".join(name.split()) for name in text.split(","))


ADE20K_CLASSES = ("unlabelled", *_names("""\
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop,
stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank,
trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic
light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag"""))
ADE20K_PALETTE = _colours("""000000
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c
ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47
ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00
1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300
ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8
001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff
a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00
ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc
2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff""").astype(np.uint8)
CITYSCAPES_CLASSES, _palette = zip(*(entry.rsplit(" ", 1) for entry in _names("""\
unlabeled 000000, ego vehicle 000000, rectification border 000000, out of roi 000000, static 000000, dynamic 6f4a00,
ground 510051, road 804080, sidewalk f423e8, parking faaaa0, rail track e6968c, building 464646, wall 66669c, fence
be9999, guard rail b4a5b4, bridge 966464, tunnel 96785a, pole 999999, polegroup 999999, traffic light faaa1e, traffic
sign dcdc00, vegetation 6b8e23, terrain 98fb98, sky 4682b4, person dc143c, rider ff0000, car 00008e, truck 000046, bus
003c64, caravan 00005a, trailer 00006e, train 005064, motorcycle 0000e6, bicycle 770b20, license plate 00008e""")))
CITYSCAPES_PALETTE = _colours(" ".join(_palette)).astype(np.uint8)
# The 19 classes that are scored, in the order of their train ids; the licence plate and the others are not.
CITYSCAPES_SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
COCO_THINGS = 91  # labels 0..90 are things, 91..181 stuff; 11 of the things occur nowhere
COCO_CLASSES = (*_names("""\
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign, stop
sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood"""), "unlabelled")


def open_ade20k(path, split, image_size, seed=0):
    """ADEChallengeData2016 (Sec. 4.1): 0 = unlabelled, 1..150 = classes; 151 channels, no instances."""
    path = Path(path)
    folder = {"train": "training", "val": "validation"}[split]
    files = {path / "images" / folder: listed(path / "images" / folder, (".jpg",)),
             path / "annotations" / folder: listed(path / "annotations" / folder, (".png",))}
    for name, file in files[path / "annotations" / folder].items():
        if "_parts_" in name or name.endswith("_seg"):
            raise InputError(f"{file}: belongs to the full ADE20K, whose labels mean something else; expected the files "
                             f"of ADEChallengeData2016.zip alone")
    pairs, names = match(files, "ade20k", path)
    return Pictures([(*pair, None) for pair in pairs], names, ADE20K_CLASSES, ADE20K_PALETTE, 0, image_size, seed,
                    classes_of_values("ade20k", 151))


def open_cityscapes(path, split, image_size, seed=0):
    """leftImg8bit and gtFine (Sec. 4.1): labelIds 0..33, and 255 for the licence plate; 35 channels, instances.

    PAPER: 256x512, silent on crops. / HERE: resized, not cropped. / WHY: OASIS's protocol.
    """
    path = Path(path)
    files = {}
    for folder, suffix in (("leftImg8bit", "_leftImg8bit"), ("gtFine", "_gtFine_labelIds"),
                           ("gtFine", "_gtFine_instanceIds")):
        of_suffix = files[path / folder / split / "*" / f"*{suffix}.png"] = {}
        for city in sorted((path / folder / split).glob("*/")):       # a city without files adds none
            for name, file in listed(city, (".png",), suffix).items():
                if of_suffix.setdefault(name, file) != file:
                    raise InputError(f"{file}: {of_suffix[name]} has the same name; remove one of them")
    pairs, names = match(files, "cityscapes", path)
    score_ids = np.full(len(CITYSCAPES_CLASSES), -1)
    score_ids[list(CITYSCAPES_SCORED)] = np.arange(len(CITYSCAPES_SCORED))
    return Pictures(pairs, names, CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, 0, image_size, seed,
                    classes_of_values("cityscapes", 35), instances=INSTANCE_RULES["cityscapes"], margin=1,
                    score_ids=score_ids)


def open_coco_stuff(path, split, image_size, seed=0):
    """COCO-Stuff (Sec. 4.1) in SPADE's layout or the official one: 0..181 = classes, 255 = unlabelled; 183 channels,
    instances."""
    path, year = Path(path), f"{split}2017"
    images = first_of(path, f"{split}_img", year, f"images/{year}")
    labels = first_of(path, f"{split}_label", f"stuffthingmaps/{year}", f"stuffthingmaps_trainval2017/{year}")
    instances = path / f"{split}_inst"
    files = {images: listed(images, (".jpg",)), labels: listed(labels, (".png",))}
    if instances.is_dir():
        files[instances] = listed(instances, (".png",))
    pairs, names = match(files, "coco_stuff", path)
    rule = INSTANCE_RULES["coco_stuff"]
    if not instances.is_dir():
        file = next((f for f in (path / "annotations" / f"instances_{year}.json", path / f"instances_{year}.json")
                     if f.is_file()), None)
        if file is None:
            raise not_there("coco_stuff", path, f"{path}: neither {split}_inst/ nor annotations/instances_{year}.json, "
                                                f"which say where an instance ends")
        rule, pairs = read_coco_instances(file, names), [(*pair, None) for pair in pairs]
    return Pictures(pairs, names, COCO_CLASSES, default_palette(183, 182), 182, image_size, seed,
                    classes_of_values("coco_stuff", 183), instances=rule)


def read_coco_instances(file, names):
    """COCO's instances_*.json -> flat arrays, which loader processes share.

    `numbers`: the outlines (x, y, x, y, ...) and crowds (run lengths) behind one another; of part p,
    numbers[start[p]:start[p + 1]], `label`, `crowd` and `instance`; of picture i, its `size` (h, w) and parts
    first[i]..first[i + 1], crowds first, then large before small, so that small ones end on top. Raises InputError.
    """
    try:
        with open(file) as opened:
            content = json.load(opened)
        known = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        annotations = {}
        for a in content["annotations"]:
            crowd = bool(a["iscrowd"])
            parts = [a["segmentation"]["counts"]] if crowd else list(a["segmentation"])
            annotations.setdefault(a["image_id"], []).append((not crowd, -a["area"], a["category_id"] - 1, parts))
        del content
        ids = [int(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: cannot be read as COCO's instances ({type(error).__name__}: {error}); expected it "
                         f"from annotations_trainval2017.zip, and pictures named by their ids") from None
    strange = [name for name, i in zip(names, ids) if i not in known]
    if strange:
        raise InputError(f"{file}: does not know {len(strange)} of the {len(names)} pictures, such as {strange[0]}; "
                         f"expected the file of the same split")
    numbers, start, label, crowd, instance, first = [], [0], [], [], [], [0]
    for i in ids:
        for number, (outline, _, c, parts) in enumerate(sorted(annotations.pop(i, ()), key=lambda a: a[:2]), 1):
            for part in parts:
                try:
                    numbers.append(np.array(part, np.float32))
                    fits = numbers[-1].ndim == 1 and np.isfinite(numbers[-1]).all() and (
                        len(part) >= 6 and len(part) % 2 == 0 if outline else all(type(n) is int and n >= 0 for n in part))
                except (ValueError, TypeError):
                    fits = False
                if not fits:
                    raise InputError(f"{file}: picture {i} has an instance that is neither outlines (x, y, x, y, ...) "
                                     f"nor plain run lengths; expected the file as in annotations_trainval2017.zip")
                start.append(start[-1] + len(part))
                label.append(c), crowd.append(not outline), instance.append(number)
        first.append(len(label))
    return {"numbers": np.concatenate([np.empty(0, np.float32), *numbers]), **{key: np.array(value) for key, value in (
        ("start", start), ("label", label), ("crowd", crowd), ("instance", instance), ("first", first),
        ("size", [known[i] for i in ids]))}}


def paint_coco_instances(coco, index, labels, file):
    """(h, w) int32 instance ids of picture `index`, 0 = none, where the label map (h, w) has the instance's class.

    PAPER: no rule for pixels that several outlines claim. / HERE: the label map decides between classes, the smaller
    instance within one. / WHY: label map and offsets then never contradict each other.
    """
    h, w = labels.shape
    if (h, w) != tuple(coco["size"][index]):
        raise InputError(f"{file} is {w}x{h}, but its instances are for {coco['size'][index][1]}x{coco['size'][index][0]}; "
                         f"pictures and label maps must have their original size")
    painted = np.zeros((h, w), np.int32)
    for p in range(coco["first"][index], coco["first"][index + 1]):
        numbers = coco["numbers"][coco["start"][p]:coco["start"][p + 1]]
        if not coco["crowd"][p]:
            window, inside = fill_outline(numbers.reshape(-1, 2), h, w)
        elif numbers.sum() == h * w:                                  # runs out, in, out, ... down the columns
            runs = np.repeat(np.arange(len(numbers)) % 2 == 1, numbers.astype(int))                    # (w h,)
            window, inside = np.s_[:, :], runs.reshape(w, h).T                                         # (h, w)
        else:
            raise InputError(f"{file} is {w}x{h}, {h * w} pixels, but a crowd among its instances has "
                             f"{int(numbers.sum())}; the picture must have its original size")
        painted[window][inside & (labels[window] == coco["label"][p])] = coco["instance"][p]
    return painted


def fill_outline(points, h, w):
    """Pixels whose middle lies inside a closed outline (n, 2) of x and y, by the even-odd rule, in an h x w picture
    -> (window of the picture, (rows, columns) bool in it)."""
    (left, top), (right, bottom) = (f(points).clip(0, (w, h)).astype(int) for f in (
        lambda p: np.floor(p.min(axis=0)), lambda p: np.ceil(p.max(axis=0))))
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    middle = np.arange(top, bottom)[:, None] + 0.5                                                     # (rows, 1)
    row, edge = np.nonzero((y0 > middle) != (y1 > middle))            # where a row's middle line crosses an edge
    x = x0[edge] + (middle[row, 0] - y0[edge]) / (y1[edge] - y0[edge]) * (x1[edge] - x0[edge])
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(crossings, (row, np.ceil(x - 0.5).clip(left, right).astype(int) - left), 1)
    return np.s_[top:bottom, left:right], crossings.cumsum(axis=1)[:, :-1] % 2 == 1


def open_folder(path, split, image_size, seed=0):
    """Anybody's own data in the generic layout (TREES["folder"]), any sizes; with a palette.txt, coloured label maps."""
    path = Path(path)
    if not (path / "classes.txt").is_file():
        raise not_there("folder", path, f"{path}: no classes.txt there")
    classes = tuple(name.strip() for name in read_lines(path / "classes.txt"))
    if not all(classes) or len(classes) > 256:
        raise InputError(f"{path / 'classes.txt'}: expected 1 to 256 lines with a class name each, found "
                         f"{len(classes)} lines, {classes.count('')} of them empty")
    unknown = next((c for c, name in enumerate(classes) if name.lower() in ("unlabelled", "unlabeled")), None)
    colours = read_palette(path / "palette.txt", classes) if (path / "palette.txt").is_file() else None
    files = {path / kind / split: listed(path / kind / split, endings) for kind, endings in (
        ("images", IMAGE_ENDINGS), ("labels", (".png",)), ("instances", (".png",)))
        if (path / kind).is_dir() or kind != "instances"}
    pairs, names = match(files, "folder", path)
    return Pictures([(*pair, None)[:3] for pair in pairs], names, classes,
                    default_palette(len(classes), unknown) if colours is None else colours, unknown, image_size, seed,
                    classes_of_values("folder", len(classes)), colours, "ids" if len(files) > 2 else None, upright=True)


def read_lines(file):
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text; save it as UTF-8") from None


def read_palette(file, classes):
    """palette.txt: "R G B" a line, one for each line of classes.txt -> (C, 3) uint8. Raises InputError."""
    lines = [line.split() for line in read_lines(file)]
    bad = [n for n, line in enumerate(lines, 1)
           if len(line) != 3 or not all(v.isdecimal() and int(v) < 256 for v in line)]
    if bad or len(lines) != len(classes) or len({tuple(map(int, line)) for line in lines}) < len(lines):
        raise InputError(f"{file}: expected {len(classes)} different lines of three numbers 0..255, R G B, one for each "
                         f"line of classes.txt; found {len(lines)} lines" + (f", line {bad[0]} unlike that" if bad else ""))
    return np.array(lines).astype(np.uint8)


def open_dataset(name, path, split, image_size, seed=0, instances=True):
    """--dataset NAME -> a dataset (see the module docstring). image_size: (H, W). split: "train" or "val".

    instances: False leaves instance maps out where there are some, for the baselines, which know none.
    """
    openers = {"ade20k": open_ade20k, "cityscapes": open_cityscapes, "coco_stuff": open_coco_stuff,
               "folder": open_folder}
    if name not in DATASETS:
        raise InputError(f"--dataset {name} is unknown; choose from {', '.join(DATASETS)}")
    if path is None and name != "toy":
        raise InputError(f"--dataset {name} needs --data-path DIR with\n{TREES[name]}")
    dataset = ToyScenes(split, image_size, seed) if name == "toy" else openers[name](path, split, image_size, seed)
    if not instances:
        dataset.instances, dataset.has_instances = None, False
    return dataset


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

def survey(dataset):
    """Read everything once -> a dict: sizes [(h, w), ...], pixels (N, C), instances (N,), problems [text, ...]."""
    def look(index):
        try:
            _, labels, instances = dataset.load(index)
        except InputError as error:
            return str(error)
        count = 0 if instances is None else len(np.unique(instances[instances > 0]))
        return labels.shape, np.bincount(labels.ravel(), minlength=len(dataset.classes)), count
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = list(tqdm(pool.map(look, range(len(dataset))), total=len(dataset), desc="reading", disable=None))
    good = [s for s in seen if not isinstance(s, str)]
    return {"sizes": [s[0] for s in good], "pixels": np.array([s[1] for s in good]).reshape(-1, len(dataset.classes)),
            "instances": np.array([s[2] for s in good]), "problems": [s for s in seen if isinstance(s, str)]}


def report(dataset, found):
    """What a person wants to know of a dataset before training on it, as text."""
    sizes, pixels = found["sizes"], found["pixels"]
    lines = [f"{len(dataset)} samples, {len(dataset.classes)} classes, "
             + (f"{int(found['instances'].sum()):,} instances" if dataset.has_instances else "no instances")]
    if sizes:
        area = sorted(sizes, key=lambda s: s[0] * s[1])
        upright, square = sum(h > w for h, w in sizes), sum(h == w for h, w in sizes)
        lines.append(f"sizes (height x width): {len(set(sizes))} different, {area[0][0]}x{area[0][1]} to {area[-1][0]}x"
                     f"{area[-1][1]}; {upright} portrait, {square} square, {len(sizes) - upright - square} landscape")
        share, images = pixels.sum(axis=0) / pixels.sum(), (pixels > 0).sum(axis=0)
        lines.append("class                        of pixels    in samples")
        for c in np.flatnonzero(images):
            lines.append(f"{c:5d} {dataset.classes[c]:<22}{share[c]:9.3%} {images[c]:9,}"
                         + ("    unknown" if c == dataset.unknown else ""))
        never = [f"{c} {dataset.classes[c]}" for c in np.flatnonzero(images == 0)]
        lines.append(f"never seen: {', '.join(never) if never else 'none'}")
    return "\n".join(lines)


def sample_page(dataset, rows):
    """{title: (rows, H, W, 3) uint8} for draw_page: samples spread over the dataset, as the networks get them."""
    columns = {"picture": [], "label map": []}
    for i in range(rows):
        image, labels, instances = dataset.planes(i * len(dataset) // rows)
        columns["picture"].append(image)
        columns["label map"].append(colour_labels(labels, dataset.palette))
        if instances is not None:
            mixed = instances.astype(np.int64) * 2654435761 >> np.array([[[8]], [[14]], [[20]]])      # (3, H, W)
            columns.setdefault("instances", []).append(np.where(instances > 0, 64 + mixed % 192, 0).astype(
                np.uint8).transpose(1, 2, 0))
            dy, dx = (offset_maps(instances) * 3).clip(-1, 1)                                         # (H, W) each
            columns.setdefault("offsets: down red, right green", []).append(np.stack(
                [127.5 + 127 * dy, 127.5 + 127 * dx, np.full_like(dx, 127.5)], axis=2).astype(np.uint8))
    return columns


def draw_page(columns, path):
    """columns {title: (rows, H, W, 3) uint8} -> one PNG, a title over each column."""
    H, W = columns[next(iter(columns))][0].shape[:2]
    zoom = max(1, round(128 / H))
    page = np.concatenate([np.concatenate(list(c), axis=0) for c in columns.values()], axis=1)
    page = Image.fromarray(page).resize((page.shape[1] * zoom, page.shape[0] * zoom), Image.NEAREST)
    sheet = Image.new("RGB", (page.width, page.height + 16), "white")
    sheet.paste(page, (0, 16))
    for i, title in enumerate(columns):
        ImageDraw.Draw(sheet).text((i * W * zoom + 4, 2), title, fill="black")
    temporary = path.with_name(path.name + ".tmp")
    try:
        sheet.save(temporary, format="PNG")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class OnlyDecoded:
    """The pictures of a dataset, decoded and thrown away: what a loader cannot do without."""

    def __init__(self, files):
        self.files = files

    def __getitem__(self, key):
        return np.asarray(open_picture(self.files[key[0]][0]).convert("RGB")).shape[0]


def samples_per_second(dataset, workers, samples):
    """What `dataset` gives for training keys, in batches of 16 from `workers` loader processes; the start left out."""
    keys = [[(i % len(dataset.files), 0, i) for i in range(first, first + 16)] for first in range(0, samples + 32, 16)]
    batches = iter(torch.utils.data.DataLoader(dataset, batch_sampler=keys, num_workers=workers))
    next(batches), next(batches)
    start = time.perf_counter()
    return sum(16 for _ in batches) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description="Check a dataset before training on it: reads every file, counts, lists "
                                     "what is wrong, and draws a page of samples. Exit code 2 if anything is wrong.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="toy")
    parser.add_argument("--data-path", help="folder of the dataset; not needed for toy; a wrong one shows the layout")
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--image-size", type=parse_size, help="height x width of the samples; default as in training")
    parser.add_argument("--rows", type=int, default=6, help="samples on the page")
    parser.add_argument("--output", type=Path, default="data.png", help="the page, a PNG")
    parser.add_argument("--speed", type=int, metavar="N", help="instead: training samples a second from --workers "
                        "processes, over N samples, beside decoding the pictures alone")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    size = args.image_size or {"toy": (64, 64), "cityscapes": (256, 512)}.get(args.dataset, (256, 256))
    if args.rows < 1:
        raise InputError(f"--rows {args.rows}: expected 1 or more")
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: cannot be written; give a PNG in a folder that exists")
    dataset = open_dataset(args.dataset, args.data_path, args.split, size)
    if args.speed is not None:
        if args.dataset == "toy" or args.workers < 1 or args.speed < 16:
            raise InputError("--speed N needs a dataset of files, N of 16 or more, and one worker or more")
        whole, decoding = (samples_per_second(d, args.workers, args.speed) for d in (dataset, OnlyDecoded(dataset.files)))
        print(f"{args.dataset}, {size[0]}x{size[1]}, {args.workers} workers: {whole:.0f} training samples/s; decoding "
              f"the picture files alone {decoding:.0f}/s; ratio {whole / decoding:.2f}")
        return
    found = survey(dataset)
    print(f"{args.dataset}, {args.split}: {report(dataset, found)}")
    if not found["problems"]:
        try:
            draw_page(sample_page(dataset, min(args.rows, len(dataset))), args.output)
        except (OSError, ValueError) as error:
            raise InputError(f"--output {args.output}: cannot be written ({error}); give a PNG in a folder that "
                             f"exists") from None
        print(f"page of samples: {args.output}")
        return
    for problem in found["problems"]:
        print(f"  {problem}", file=sys.stderr)
    raise InputError(f"{len(found['problems'])} of {len(dataset)} samples cannot be used, for the reasons above")


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
