"""Toy scenes: landscapes with trees, houses, cars, boats and persons, drawn from (seed, index) alone, not downloaded.

Every machine draws the same, and every size shows the same scene. _draw_scene decides the label map, _draw_look how it
looks: one label map has many right pictures. x and y are shares of the picture, right and down; sizes, of its height.
"""
from collections import namedtuple
from functools import lru_cache

import numpy as np

from readers.images import hex_colours

TOY_SEED, TOY_TRAIN, TOY_VAL = 0, 2000, 200
SMALLEST = 16  # side; below it a thing may cover no pixel
TOY_CLASSES = ("sky", "mountain", "water", "grass", "road", "tree", "house", "car", "boat", "person", "sun")
SKY, MOUNTAIN, WATER, GRASS, ROAD, TREE, HOUSE, CAR, BOAT, PERSON, SUN = range(11)
TOY_OBJECTS = TOY_CLASSES[TREE:SUN]  # the things, which have instances
TOY_PALETTE = hex_colours("87beeb 8c7364 285fc8 96d76e 804080 19732d cd643c 00008e f0ebe1 dc143c ffd700")

# What a thing can look like: its class, its height when near, half its width over its height, the ground that it needs,
# the most in a scene, and its parts from back to front. A part: name, then a disc (middle, level, radius), or a band
# (low, high, half width at low, at high), or a slanted band (low, high, left, right, left at high, right at high).
Form = namedtuple("Form", "label height half_width ground most parts")
FORMS = [Form(*form, [(name, *map(float, numbers)) for name, *numbers in map(str.split, parts.split(","))])
         for *form, parts in (
    (CAR, 0.22, 1.12, ROAD, 2, "paint .18 .62 1.12 1.06, paint .6 1 -.9 .72 -.62 .36, wheels .64 .22 .24, "
     "glass .62 .9 -.74 -.14 -.56 -.14, glass .62 .9 -.02 .56 -.02 .32"),
    (CAR, 0.22, 0.66, ROAD, 2, "wheels 0 .3 .32 .58 .32 .58, paint .12 .62 .64 .6, paint .6 1 .54 .36, "
     "glass .62 .9 .44 .32, lamps .32 .48 .36 .56 .36 .56"),
    (BOAT, 0.36, 0.5, WATER, 2, "hull 0 .2 .28 .46, trunk .15 1 .025 .025, sail .26 .98 .04 .46 .04 .05, "
     "sail .26 .86 -.36 -.05 -.06 -.05"),
    (HOUSE, 0.46, 0.6, GRASS, 1, "wall 0 .56 .46 .46, roof .6 .96 .2 .32 .2 .32, roof .52 1 .62 0, door 0 .33 .08 .08, "
     "panes .2 .42 .18 .35 .18 .35"),
    (TREE, 0.56, 0.37, GRASS, 3, "trunk 0 .5 .07 .05, leaves .16 .57 .2, leaves -.16 .58 .2, leaves 0 .74 .25"),
    (HOUSE, 0.4, 0.72, GRASS, 1, "wall 0 .6 .6 .6, roof .58 .96 .74 .42, door 0 .38 .1 .1, "
     "panes .2 .46 .24 .46 .24 .46"),
    (TREE, 0.6, 0.34, GRASS, 3, "trunk 0 .2 .05 .05, needles .12 .55 .33 .08, needles .38 .78 .26 .06, "
     "needles .62 1 .19 0"),
    (PERSON, 0.36, 0.22, GRASS, 2, "legs 0 .46 .02 .12 0 .14, shirt .42 .76 .22 .15, hair 0 .88 .12, skin 0 .85 .105"))]
SIDE_CAR, FRONT_CAR = FORMS[:2]
PAIRED = ("wheels", "lamps", "panes", "legs")       # parts that stand on both sides
Thing = namedtuple("Thing", "form x foot size")
PART_COLOURS = {part: hex_colours(text, np.float32) for part, text in {         # in the order of the random draws
    "trunk": "62442c 523e32", "door": "6e422a 345c54 962a2a", "lamps": "fff0b4",
    "wall": "f0e2c4 c45c46 f6f4ee 96b0c8 ecc468 daa896", "roof": "a83e2c 545464 744834 405c68",
    "panes": "607f9e", "glass": "607f9e", "paint": "d82628 245cce fac222 f0f0f2 1ea082 f0761e",
    "wheels": "222226", "hull": "96482a ececec be282c 243e7a", "sail": "fcfaf2 f6cc78 e85c48",
    "skin": "eec2a0 c48c66 7a523c", "hair": "2e221e 784c28 deb86e",
    "shirt": "e2323c 2868d6 face3c f4f4f4 963caa", "legs": "28345c 3c3c40 785c42"}.items()}
# Colours of the sky overhead, of the sky at the horizon and of the sun; light; whether lamps are lit.
TIMES = [(*hex_colours(sky, np.float32), np.array(light, np.float32), lit) for sky, light, lit in (
    ("3076d6 b2daf8 fff6be", (1.04, 1.02, 0.96), False),                            # noon
    ("5a9ae2 dcecf0 fffad7", (1.00, 1.00, 1.00), False),                            # morning
    ("6270ac ffbc64 ffec96", (1.08, 0.90, 0.68), False),                            # golden hour
    ("7a7ac4 fcbcbe ffe8cd", (1.02, 0.86, 0.92), False),                            # pink dawn
    ("8e98a5 d0d3d6 f6f4e8", (0.80, 0.83, 0.87), False),                            # overcast
    ("4a3482 ff885e ffcd78", (0.98, 0.74, 0.72), True),                             # sunset
    ("1c4270 78acc0 f0f0d7", (0.62, 0.75, 0.84), True),                             # dusk
    ("101a48 465aa0 eef0f8", (0.52, 0.58, 0.80), True))]                            # night
# Colours of grass, of two kinds of leaves and of needles; how much snow lies.
SEASONS = [(hex_colours(plants, np.float32), snow) for plants, snow in (
    ("70ac42 3e8434 60962c 225c3e", 0.0), ("92c454 f0a4be 68a83e 2e6c42", 0.0),     # summer, spring
    ("b0a052 e27a24 ca4228 345c34", 0.0), ("ceb870 7c8a3a 989246 486638", 0.0),     # autumn, drought
    ("e0e6ee 9aaeba 8aa4aa 54787a", 0.6))]                                          # winter
SNOW, MARKING, DEEP_WATER, LAMPLIGHT = hex_colours("f0f4fa ece6cd 105480 ffd66e", np.float32)


# ------------------------------------------------------------------------------------ the label map

def _draw_scene(seed, index):
    """Everything that decides the label map: horizon, sun, peaks, lake, river, road, things."""
    random = np.random.default_rng((seed, index, 0))
    between, horizon = random.uniform, random.uniform(0.36, 0.58)

    def draw_path(level, start, half):
        return (level, start, *between(0.2, 0.8, 2), between(-0.12, 0.12), half)

    # An absent sun or lake lies far outside of the picture. It needs no special case later.
    sun_y = horizon * between(0.2, 0.75) if random.random() < 0.7 else -9.0
    scene = {"horizon": horizon, "sun": (between(0.1, 0.9), sun_y, between(0.06, 0.09)), "lake": (0, -9, 1, 1),
             "river": None, "road": None}
    peaks = random.integers(2, 5) if random.random() < 0.72 else 0
    scene["peaks"] = [(between(-0.1, 1.1), horizon * between(0.25, 0.72), between(0.5, 1.2)) for _ in range(peaks)]
    water, path_start = random.random(), horizon
    if water < 0.32:                                # a sea or a bay, from the horizon on
        depth = (1 - horizon) * between(0.3, 0.5)
        scene["lake"] = (between(0, 1), horizon, between(0.7, 2.5), depth)
        path_start += depth
    elif water < 0.5:
        scene["lake"] = (between(0.1, 0.9), between(horizon + 0.16, 0.86), between(0.3, 0.5), between(0.09, 0.14))
    elif water < 0.68:
        scene["river"] = draw_path(False, horizon, between(0.22, 0.34))
    if random.random() < 0.72:
        scene["road"] = draw_path(random.random() < 0.5, path_start, between(0.18, 0.25))
    scene["things"] = _draw_things(random, scene)
    return scene


def _draw_things(random, scene):
    """[Thing, ...], far ones first, each with its foot on the ground that it needs, none before another."""
    wrong_car = FRONT_CAR if scene["road"] and scene["road"][0] else SIDE_CAR
    wanted = [form for form in FORMS if form is not wrong_car for _ in range(random.integers(0, form.most + 1))]
    tries = random.random((3, len(wanted), 16))     # each thing tries 16 places
    height, wide, ground = np.array([form[1:4] for form in wanted]).reshape(-1, 3).T[..., None]
    x, nearness = 0.06 + 0.88 * tries[0], 0.06 + 0.89 * tries[1]
    foot = scene["horizon"] + (1 - scene["horizon"]) * nearness
    size = height * (0.5 + 0.5 * nearness) * (0.85 + 0.3 * tries[2])
    edges = x + 0.8 * size * wide * np.array((-1, 0, 1))[:, None, None]
    fits = (_stuff_labels(scene, edges, foot[None], 1.0) == ground).all(axis=0)
    things = []
    for row, form in enumerate(wanted):
        for place in zip(*(values[row, fits[row]] for values in (x, foot, size))):
            thing = Thing(form, *place)
            if all(abs(thing.x - other.x) > 0.55 * (thing.size * form.half_width + other.size * other.form.half_width)
                   for other in things):
                things.append(thing)
                break
    return sorted(things, key=lambda thing: thing.foot)


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
    """Labels, things left out, of the points `x`, `y` (any shapes that broadcast)."""
    labels = np.full(np.broadcast(x, y).shape, SKY, np.uint8)
    sun_x, sun_y, radius = scene["sun"]
    labels[((x - sun_x) * aspect) ** 2 + (y - sun_y) ** 2 < radius ** 2] = SUN
    labels[y > scene["horizon"] - _ridge(scene, x)] = MOUNTAIN
    ground = np.broadcast_to(y >= scene["horizon"], labels.shape)
    labels[ground] = GRASS
    lake_x, lake_y, half_width, half_height = scene["lake"]
    labels[ground & (((x - lake_x) / half_width) ** 2 + ((y - lake_y) / half_height) ** 2 < 1)] = WATER
    for name, label in (("river", WATER), ("road", ROAD)):
        if scene[name]:
            labels[np.abs(_path_position(scene[name], x, y)[0]) < 1] = label
    return labels


def _thing_window(thing, x, y):
    """The window around a thing in the grid of `x` (1, W) and `y` (H, 1), and its own coordinates there in units of its
    size: `a` (1, w) to the right, `b` (h, 1) upward from its foot."""
    a, b = (x - thing.x) * (x.size / y.size / thing.size), (thing.foot - y) / thing.size
    columns = np.flatnonzero(np.abs(a) < 1.15 * thing.form.half_width)
    rows = np.flatnonzero((b > -0.1) & (b < 1))
    rows, columns = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return (rows, columns), a[:, columns], b[rows]


def _part_mask(part, a, b):
    """(h, w) bool: where a part of FORMS lies in its thing's window."""
    name, low, high, *sides = part
    a = np.abs(a) if name in PAIRED else a
    if len(sides) == 1:
        return (a - low) ** 2 + (b - high) ** 2 < sides[0] ** 2
    left, right, high_left, high_right = sides if len(sides) == 4 else (-sides[0], sides[0], -sides[1], sides[1])
    rise = (b - low) / (high - low)
    inside = (a > left + (high_left - left) * rise) & (a < right + (high_right - right) * rise)
    return inside & (rise > 0) & (rise < 1)


def _grid(height, width):
    """Pixel centres `x` (1, W) and `y` (H, 1) in 0..1."""
    return (np.arange(width)[None] + 0.5) / width, (np.arange(height)[:, None] + 0.5) / height


def toy_layout(seed, index, height, width):
    """Scene `index` of stream `seed`: labels (H, W) uint8, and instances (H, W) uint8, 0 = none, 1.. = things."""
    scene, x, y = _draw_scene(seed, index), *_grid(height, width)
    labels = _stuff_labels(scene, x, y, width / height)
    instances = np.zeros_like(labels)
    for number, thing in enumerate(scene["things"], 1):
        window, a, b = _thing_window(thing, x, y)
        for part in thing.form.parts:
            mask = _part_mask(part, a, b)
            labels[window][mask], instances[window][mask] = thing.form.label, number
    return labels, instances


# ------------------------------------------------------------------------------------ the picture

def _mix(first, second, share):
    return first + (second - first) * share


def _noise(random, x, y, across, down):
    """Smooth noise (H, W), mostly in -1..1, of at most `across` and `down` periods a unit."""
    speed = random.uniform(-1, 1, (3, 20)).astype(np.float32)
    # sin(p + q) = sin p cos q + cos p sin q turns a sum of plane waves into matrix products.
    p, q = 6.283 * (y * down * speed[0] + speed[2]), 6.283 * x.T * across * speed[1]
    return (np.sin(p) @ np.cos(q).T + np.cos(p) @ np.sin(q).T) * 0.18


def _draw_look(random):
    """Everything that decides the picture of a label map: time of day, season, paint."""
    top, low, disc, light, lit = TIMES[random.integers(len(TIMES))]
    plants, snow = SEASONS[random.integers(len(SEASONS))]
    shift, paint = random.uniform(-1, 1, (2, 3)).astype(np.float32)
    return {"top": top + 14 * shift, "low": low + 8 * shift, "disc": disc, "lit": lit, "snow": snow,
            "light": light * (1 + 0.08 * paint[2]), "grass": plants[0] + 12 * paint,
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
    bent = x + 0.025 * rough                        # bends the line between the lit and the dark face of each peak
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
    ripples = _noise(random, x, np.sqrt(away + 0.02), 4, 16)                        # the root crowds them far away
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
    box, across = canvas[window], a / thing.form.half_width
    side = np.clip(5 * (scene["sun"][0] - thing.x), -1, 1)
    shadow = np.clip(1.2 - ((across + 0.25 * side) / 0.9) ** 2 - (b / 0.09) ** 2, 0, 1)
    box *= 1 - 0.42 * shadow[..., None]
    even = 1 + 0.2 * side * across
    leafy = 0.6 + 0.4 * b + 0.25 * side * across + 0.16 * rough[window]
    chosen = {name: colours[random.integers(len(colours))] * look["light"] for name, colours in look["parts"].items()}
    for part in thing.form.parts:
        shade = leafy if part[0] in ("leaves", "needles") else even
        lit = look["lit"] and part[0] in ("panes", "lamps")
        colour = LAMPLIGHT if lit else shade[..., None] * chosen[part[0]]
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
    for label, rows, paint, texture in ((MOUNTAIN, above, _paint_mountain, rough[above]),
                                        (WATER, below, _paint_water, random), (ROAD, below, _paint_road, rough[below])):
        mask = (labels[rows] == label)[..., None]
        if mask.any():
            np.copyto(canvas[rows], paint(scene, look, texture, x, y[rows]), where=mask)
    for thing in scene["things"]:
        _paint_thing(canvas, thing, scene, look, random, rough, x, y)
    return canvas


@lru_cache(TOY_TRAIN)
def toy_scene(seed, index, height=64, width=64, appearance=0):
    """The picture (H, W, 3) uint8, and labels and instances as toy_layout. `appearance` redraws time of day, season,
    colours and texture only. Kept once drawn: 40 MB for the 2,000 at 64x64, 625 MB at 256x256."""
    random = np.random.default_rng((seed, index, 1 + appearance))
    # Painted at twice the size and averaged: soft edges, while the labels stay exact.
    fine = _paint(_draw_scene(seed, index), _draw_look(random), random, 2 * height, 2 * width)
    image = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]) / 4
    return (np.clip(image + 0.5, 0, 255).astype(np.uint8), *toy_layout(seed, index, height, width))


# ------------------------------------------------------------------------------------ the reader

class ToyScenes:
    """A reader as files.Pictures is, of scenes that are drawn at `image_size` (H, W) when asked for."""
    classes, palette, unknown, score_ids = TOY_CLASSES, TOY_PALETTE, None, np.arange(len(TOY_CLASSES))
    has_instances, cropped, objects = True, False, TOY_OBJECTS

    def __init__(self, split, image_size):
        self.image_size = image_size
        self.first, count = {"train": (0, TOY_TRAIN), "val": (TOY_TRAIN, TOY_VAL)}[split]
        self.names = [f"{split}{i:04d}" for i in range(count)]

    def load(self, index, instances=True):
        image, labels, ids = toy_scene(TOY_SEED, self.first + index, *self.image_size)
        return image, labels, ids if instances else None

    def labels(self, index):
        """(64, 64) uint8: which classes a scene contains is asked at this size, whatever image_size."""
        return toy_layout(TOY_SEED, self.first + index, 64, 64)[0]

    def fingerprint(self):
        return f"toy {TOY_SEED} {self.first} {len(self.names)}"
