"""The benchmarks' official layouts and one's own data, read as they lie on disk (Sec. 4.1), and `python data.py`.

    python -m pytest tests/test_datasets.py          (from the repository root; under 40 seconds on one core)

Every dataset is made here, in tmp_path, with numpy and PIL. Oracles: the label and instance conventions once more,
as plain loops over pixels; resizing, cropping and flipping as loops over positions; counts by numpy. The last test
reads real samples where they are there.
"""
import json
import os
import re
import runpy
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import (InputError, Pictures, RareClassBatches, class_presence, open_ade20k, open_cityscapes,
                  open_coco_stuff, open_dataset, open_folder, sampling_probabilities, survey)

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"

# ------------------------------------------------------------------------------------- datasets made by the tests

NAMES, SIZES = ("000000000007", "000000000011", "000000000013"), ((12, 20), (20, 12), (30, 11))
PLACES = {  # picture, label map, and what tells instances, of a sample of the training split
    "ade20k": ("images/training/{}.jpg", "annotations/training/{}.png", None),
    "cityscapes": ("leftImg8bit/train/ulm/{}_leftImg8bit.png", "gtFine/train/ulm/{}_gtFine_labelIds.png",
                   "gtFine/train/ulm/{}_gtFine_instanceIds.png"),
    "coco_stuff": ("train_img/{}.jpg", "train_label/{}.png", "train_inst/{}.png"),
    "official": ("train2017/{}.jpg", "stuffthingmaps/train2017/{}.png", "annotations/instances_train2017.json"),
    "folder": ("images/train/{}.jpg", "labels/train/{}.png", "instances/train/{}.png"),
    "coloured": ("images/train/{}.jpg", "labels/train/{}.png", None)}
OPEN = {"ade20k": open_ade20k, "cityscapes": open_cityscapes, "coco_stuff": open_coco_stuff,
        "official": open_coco_stuff, "folder": open_folder, "coloured": open_folder}
OPTION = {layout: opener.__name__.removeprefix("open_") for layout, opener in OPEN.items()}
VALUES = {"ade20k": (0, 1, 13, 150), "cityscapes": (0, 7, 24, 26, 33, 255), "coco_stuff": (0, 1, 2, 90, 91, 181, 255),
          "official": (0, 1, 90, 91, 255), "folder": (0, 1, 2, 3), "coloured": (0, 1, 2, 3)}
OF_255 = {"cityscapes": 34, "coco_stuff": 182, "official": 182}
COLOURS = np.array([(128, 64, 128), (0, 0, 142), (128, 64, 129), (0, 1, 142)], np.uint8)


def place(root, layout, which, name=NAMES[0]):
    return root / PLACES[layout][which].format(name)


def save(file, content):
    """An array, a PIL image, bytes, text or a dict (as JSON)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, (bytes, str, dict)):
        content = json.dumps(content) if isinstance(content, dict) else content
        return file.write_bytes(content if isinstance(content, bytes) else content.encode())
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    image.save(file, **({"format": "TIFF"} if image.mode == "F" else {}),
               **({"quality": 95, "subsampling": 0} if file.suffix == ".jpg" else {}))


def loops_runs(mask):
    """COCO's plain RLE of a mask (h, w): run lengths out, in, out, ... down the columns, the left one first."""
    lengths, inside = [0], False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != inside:
                inside = not inside
                lengths.append(0)
            lengths[-1] += 1
    return lengths


def boxes_mask(boxes, h, w):
    """(h, w) bool; a box: first and last row, first and last column."""
    return np.array([[any(a <= y <= b and c <= x <= d for a, b, c, d in boxes) for x in range(w)] for y in range(h)])


def annotation(picture, label, area, h, w, boxes=(), crowd=None):
    """COCO's JSON entry, and "mask" for the tests: an instance of boxes whose outlines enclose exactly the middles of
    their pixels, or a crowd (h, w) bool."""
    if crowd is None:
        part = [[c + 0.3, a + 0.3, d + 0.7, a + 0.3, d + 0.7, b + 0.7, c + 0.3, b + 0.7] for a, b, c, d in boxes]
    else:
        part = {"counts": loops_runs(crowd), "size": [h, w]}
    return {"id": area, "image_id": picture, "category_id": label + 1, "iscrowd": int(crowd is not None), "area": area,
            "segmentation": part, "mask": boxes_mask(boxes, h, w) if crowd is None else crowd}


def random_instances(layout, labels, rng):
    """What lies beside a label map of the given values (h, w), with the traps of each layout."""
    h, w = labels.shape
    if layout == "cityscapes":         # 26001 and 26257 agree in 8 bits; 999 and 24 are no instances, 1000 is one
        return np.where(np.isin(labels, (24, 26)), rng.choice((26001, 26257, 24, 999, 1000, 24000), (h, w)),
                        labels).astype(np.uint16)
    if layout == "coco_stuff":         # ids that equal labels, and the other way round; 90 is a thing, 91 is stuff
        return np.where(rng.random((h, w)) < 0.7, rng.integers(4, size=(h, w)), labels).astype(np.uint8)
    if layout == "official":           # outlines of two parts that overlap, and two crowds
        areas, spans = rng.permutation(np.arange(50, 60)), rng.integers((h, h, w, w), size=(8, 2, 4))
        boxes = [[(min(a, b), max(a, b), min(c, d), max(c, d)) for a, b, c, d in two] for two in spans.tolist()]
        return [annotation(7, int(rng.choice((0, 0, 1, 90))), int(area), h, w, two) for two, area in zip(boxes, areas)
                ] + [annotation(7, c, int(a), h, w, crowd=rng.random((h, w)) < 0.6) for c, a in zip((0, 1), areas[8:])]
    return rng.choice((0, 1, 2, 300), (h, w)).astype(np.uint16) if layout == "folder" else None


def loops_meaning(layout, labels, instances):
    """The convention, pixel by pixel: classes (h, w), and an instance's key or None, in a list of lists."""
    classes, keys = labels.astype(int), [[None] * labels.shape[1] for _ in labels]
    for y, x in np.ndindex(*labels.shape):
        value = int(labels[y, x])
        classes[y, x] = OF_255[layout] if value == 255 else value
        if layout == "official":       # of the instances of the pixel's class: no crowd if possible, then the smallest
            here = [(a["iscrowd"], a["area"]) for a in instances if a["category_id"] - 1 == value and a["mask"][y, x]]
            keys[y][x] = min(here, default=None)
        elif instances is not None:
            one = int(instances[y, x])
            keys[y][x] = {"cityscapes": one if one // 1000 else None, "folder": one or None,
                          # SPADE: things are 0..90; their running number, or their label where nothing was drawn
                          "coco_stuff": (one, one == value) if value <= 90 else None}[layout]
    return classes, keys


def loops_numbers(keys):
    """Equal for two partitions of the pixels that are equal: 1, 2, ... in order of appearance, 0 = none."""
    numbers = {None: 0, 0: 0}
    return np.array([[numbers.setdefault(key, len(numbers) - 1) for key in row] for row in keys])


def write(root, layout, samples):
    """samples: {name: (picture, label values, instances)}, as random_sample gives them. -> root"""
    for name, (picture, labels, instances) in samples.items():
        save(place(root, layout, 0, name), picture)
        save(place(root, layout, 1, name), COLOURS[labels] if layout == "coloured" else labels)
        if isinstance(instances, np.ndarray):
            save(place(root, layout, 2, name), instances)
    if layout == "official":
        annotations = [{**{k: v for k, v in a.items() if k != "mask"}, "image_id": int(name)}
                       for name, (_, _, instances) in samples.items() for a in instances]
        save(root / PLACES[layout][2], {"annotations": annotations, "images": [
            {"id": int(name), "height": s[1].shape[0], "width": s[1].shape[1], "file_name": f"{name}.jpg"}
            for name, s in samples.items()]})
    if layout in ("folder", "coloured"):
        save(root / "classes.txt", "sky\nground\ntree\nhouse\n")
    if layout == "coloured":
        save(root / "palette.txt", "".join("{} {} {}\n".format(*colour) for colour in COLOURS))
    return root


def random_sample(layout, rng, h, w):
    labels = rng.choice(VALUES[layout], (h, w)).astype(np.uint8)
    return rng.integers(256, size=(h, w, 3), dtype=np.uint8), labels, random_instances(layout, labels, rng)


def good(root, layout):
    """A dataset without faults, a landscape and two portraits. -> root, samples"""
    rng = np.random.default_rng(5)
    samples = {name: random_sample(layout, rng, *size) for name, size in zip(NAMES, SIZES)}
    return write(root, layout, samples), samples


def same_instances(found, keys):
    return np.array_equal(loops_numbers(found.tolist()), loops_numbers(keys))


# ------------------------------------------------------------------------------ labels and instances, as they are

@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", PLACES)
def test_classes_and_instances_are_those_of_the_convention(tmp_path, layout, seed):
    """Every pixel, by loops, in landscape and portrait: 255, licence plates, 16-bit ids, overlaps, crowds."""
    rng = np.random.default_rng(seed)
    samples = {name: random_sample(layout, rng, *size) for name, size in zip(NAMES, SIZES)}
    dataset = OPEN[layout](write(tmp_path, layout, samples), "train", (16, 16))
    assert dataset.names == sorted(NAMES)
    for i, name in enumerate(NAMES):
        classes, keys = loops_meaning(layout, *samples[name][1:])
        _, found, instances = dataset.load(i)
        assert found.dtype == np.uint8 and np.array_equal(found, classes), f"{name}: classes are not the convention's"
        assert (instances is not None) == dataset.has_instances == (layout not in ("ade20k", "coloured"))
        assert instances is None or same_instances(instances, keys), f"{name}: instances are not the convention's"


def test_cityscapes_ids_that_agree_in_8_bits_are_two_instances(tmp_path):
    """26001 beside 26257, touching; in 8 bits both are 145. A group (26) and the road (7) are none."""
    ids = np.array([[26001, 26001, 26257, 26257, 26, 7]] * 4, np.uint16)
    labels = np.array([[26, 26, 26, 26, 26, 7]] * 4, np.uint8)
    dataset = open_cityscapes(write(tmp_path, "cityscapes", {"a": (np.zeros((4, 6, 3), np.uint8), labels, ids)}),
                              "train", (4, 6))
    assert dataset.load(0)[2].tolist() == [[26001, 26001, 26257, 26257, 0, 0]] * 4
    np.testing.assert_allclose(dataset[0]["offsets"][1, 0], np.array([0.5, -0.5, 0.5, -0.5, 0, 0]) / 6, atol=1e-6,
                               err_msg="the two touching cars have a centre each, two pixels wide")


def test_cityscapes_licence_plate_is_channel_34(tmp_path):
    """Its value is -1, which 8 bits hold as 255; and 0 is a class of its own, the unknown one."""
    labels = np.array([[255, 0], [33, 7]], np.uint8)
    dataset = open_cityscapes(write(tmp_path, "cityscapes", {"a": (np.zeros((2, 2, 3), np.uint8), labels,
                                                                   labels.astype(np.uint16))}), "train", (2, 2))
    assert dataset[0]["label_map"].tolist() == [[34, 0], [33, 7]] and dataset.unknown == 0
    assert not dataset.load(0)[2].any(), "plain label ids are no instances"


def test_spade_instance_maps(tmp_path):
    """Drawn here as SPADE's script does: 0, 1, 2 over a copy of the label map. Number 0 is an instance, number 1 is a
    bicycle (label 1), number 2 a person in a picture with a crowd of cars, whose label is 2."""
    labels = np.repeat(np.array([2, 1, 0, 2, 0, 91, 255, 90], np.uint8), 2)[None].repeat(3, axis=0)
    instances = labels.copy()
    for number, left in enumerate((0, 2, 4)):                  # a car, a bicycle, a person; 2 pixels wide
        instances[:, left:left + 2] = number
    truth = "car", "bicycle", "person", "crowd of cars", "crowd of persons", None, None, "a hair brush, undrawn"
    dataset = open_coco_stuff(write(tmp_path, "coco_stuff", {"7": (np.zeros((3, 16, 3), np.uint8), labels, instances)}),
                              "train", (3, 16))
    found = dataset.load(0)[2]
    assert same_instances(found, [[key for key in truth for _ in (0, 1)]] * 3), f"the first row came out as {found[0]}"


def test_a_spade_and_an_official_coco_folder_give_the_same(tmp_path):
    """Two cars that overlap and a crowd of cars, once painted as SPADE's script does, once as outlines and runs."""
    crowd = np.random.default_rng(0).random((10, 12)) < 0.5
    official = [annotation(7, 2, 30, 10, 12, [(1, 5, 2, 8)]), annotation(7, 2, 9, 10, 12, [(4, 7, 6, 8)]),
                annotation(7, 2, 99, 10, 12, crowd=crowd)]
    large, small, _ = (a["mask"] for a in official)
    labels = np.where(large | small | crowd, 2, 91).astype(np.uint8)
    instances = labels.copy()
    instances[large], instances[small] = 0, 1
    picture = np.zeros((10, 12, 3), np.uint8)
    maps = [OPEN[layout](write(tmp_path / layout, layout, {"7": (picture, labels, third)}), "train", (10, 12)).load(0)
            for layout, third in (("coco_stuff", instances), ("official", official))]
    assert np.array_equal(maps[0][1], maps[1][1]), "the label maps differ"
    assert len(np.unique(maps[0][2])) == 4 and same_instances(maps[0][2], maps[1][2].tolist()), "the instances differ"


def test_coco_smaller_instances_lie_on_top_and_crowds_below(tmp_path):
    """The crowd is the smallest of the three, by its area; the large instance stands first in the file."""
    h, w = 8, 8
    things = [annotation(7, 0, 60, h, w, [(0, 7, 0, 5)]), annotation(7, 0, 20, h, w, [(2, 5, 2, 5)]),
              annotation(7, 0, 1, h, w, crowd=boxes_mask([(0, 7, 4, 7)], h, w))]
    for order in ((0, 1, 2), (2, 1, 0)):
        labels, picture = np.zeros((h, w), np.uint8), np.zeros((h, w, 3), np.uint8)
        write(tmp_path, "official", {"7": (picture, labels, [things[i] for i in order])})
        found = open_coco_stuff(tmp_path, "train", (h, w)).load(0)[2]
        expected = [["small" if 2 <= y < 6 and 2 <= x < 6 else "large" if x < 6 else "crowd" for x in range(w)]
                    for y in range(h)]
        assert same_instances(found, expected), f"in the order {order} of the file: {found}"


def test_coco_instances_that_touch_share_no_pixel(tmp_path):
    """Outlines meet at x = 8, the left one is the smaller: a pixel belongs to the outline around its middle, as
    COCO's own tools and SPADE's maps have it."""
    outlines = [[0, 4, 8, 4, 8, 10, 0, 10], [8, 0, 16, 0, 16, 12, 8, 12]]
    things = [{**annotation(7, 0, area, 12, 16), "segmentation": [o]} for o, area in zip(outlines, (48, 96))]
    write(tmp_path, "official", {"7": (np.zeros((12, 16, 3), np.uint8), np.zeros((12, 16), np.uint8), things)})
    found = open_coco_stuff(tmp_path, "train", (12, 16)).load(0)[2]
    assert same_instances(found, [["right" if x >= 8 else "left" if 4 <= y < 10 else None for x in range(16)]
                                  for y in range(12)]), f"found {found}"


@pytest.mark.parametrize("seed", range(6))
def test_coco_outlines_of_any_shape(tmp_path, seed):
    """Exactly the pixels whose middle is inside by the even-odd rule, by loops; outlines that leave the picture, every
    second one crossing itself."""
    rng, (h, w) = np.random.default_rng(seed), (30, 40)
    points = rng.uniform((-6, -6), (w + 6, h + 6), (9, 2)).astype(np.float32)
    if seed % 2:
        points = points[np.argsort(np.arctan2(points[:, 1] - h / 2, points[:, 0] - w / 2))]
    corners = points.tolist()

    def inside(y, x):
        crossings = 0
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
            crossings += (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)
        return crossings % 2

    thing = {**annotation(7, 0, 9, h, w), "segmentation": [points.astype(float).ravel().tolist()]}
    write(tmp_path, "official", {"7": (np.zeros((h, w, 3), np.uint8), np.zeros((h, w), np.uint8), [thing])})
    found = open_coco_stuff(tmp_path, "train", (h, w)).load(0)[2] > 0
    expected = np.array([[inside(y + 0.5, x + 0.5) for x in range(w)] for y in range(h)], bool)
    assert 50 < expected.sum() < h * w - 50, "this test wants pixels inside and outside"
    assert np.array_equal(found, expected), f"wrong at (y, x) {np.argwhere(found != expected)[:5].tolist()}"


@pytest.mark.parametrize("outline", [[50, 2, 60, 2, 60, 9], [-9, -9, -2, -9, -2, -2], [3, 3, 3, 3, 3, 3],
                                     [2, 5, 9, 5, 4, 5]])
def test_coco_outlines_around_no_pixel_are_no_instance(tmp_path, outline):
    """Beside the picture, a point, a line: they occur, and claim nothing."""
    things = [{**annotation(7, 0, 9, 12, 16), "segmentation": [outline]}, annotation(7, 0, 8, 12, 16, [(1, 3, 1, 3)])]
    write(tmp_path, "official", {"7": (np.zeros((12, 16, 3), np.uint8), np.zeros((12, 16), np.uint8), things)})
    found = open_coco_stuff(tmp_path, "train", (12, 16)).load(0)[2]
    assert np.array_equal(found > 0, boxes_mask([(1, 3, 1, 3)], 12, 16)), f"found {found}"


@pytest.mark.parametrize("moved", ["images/{}", "stuffthingmaps_trainval2017", "instances_train2017.json"])
def test_official_coco_folders_that_unpacking_moves(tmp_path, moved):
    """train2017 inside images/, the archive's own folder for the label maps, the JSON beside the pictures."""
    root, samples = good(tmp_path, "official")
    expected = open_coco_stuff(root, "train", (16, 16))[0]
    if moved == "images/{}":
        (root / "images").mkdir()
        (root / "train2017").rename(root / "images/train2017")
    else:
        old = "stuffthingmaps" if moved.startswith("stuff") else "annotations/instances_train2017.json"
        (root / old).rename(root / moved)
    found = open_coco_stuff(root, "train", (16, 16))[0]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("seed", range(2))
def test_coloured_label_maps_are_read_by_the_palette(tmp_path, seed):
    """Colours that differ by one in one channel are two classes; a look-up by loops. A tool may have made an index PNG
    of one, with indices of its own: its colours count."""
    root, samples = good(tmp_path, "coloured")
    order = np.array([2, 0, 3, 1])
    indices = Image.fromarray(np.argsort(order)[samples[NAMES[1]][1]].astype(np.uint8))
    indices.putpalette(COLOURS[order].ravel().tolist())
    save(place(root, "coloured", 1, NAMES[1]), indices)
    dataset = open_folder(root, "train", (16, 16))
    of = {tuple(colour): c for c, colour in enumerate(COLOURS.tolist())}
    stored = np.asarray(Image.open(place(root, "coloured", 1))).tolist()
    assert dataset.labels(0).tolist() == [[of[tuple(colour)] for colour in row] for row in stored]
    assert np.array_equal(dataset.labels(1), samples[NAMES[1]][1]), "an index PNG counts by its colours here"
    assert np.array_equal(dataset.palette, COLOURS), "the page is drawn in the user's own colours"


def test_index_pngs_of_other_colours_than_the_palette_are_refused(tmp_path):
    root, _ = good(tmp_path, "coloured")
    indices = Image.fromarray(np.zeros((12, 20), np.uint8))
    indices.putpalette([9, 9, 9])
    save(place(root, "coloured", 1), indices)
    with pytest.raises(InputError, match="no class's colour"):
        open_folder(root, "train", (16, 16)).labels(0)


def test_grey_pngs_of_4_bits_are_refused(tmp_path):
    """Their values reach the reader multiplied by 17: class 1 would be class 17. Written by hand, PIL cannot."""
    root, _ = good(tmp_path, "ade20k")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes([0x12] * 10) for _ in range(12))                  # 1, 2, 1, 2, ... in each row
    place(root, "ade20k", 1).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 12, 4, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert np.unique(np.asarray(Image.open(place(root, "ade20k", 1)))).tolist() == [17, 34]
    with pytest.raises(InputError, match="2 or 4 bits.*8 bits"):
        open_ade20k(root, "train", (16, 16)).labels(0)


def test_cityscapes_ids_that_were_clipped_to_8_bits_are_refused(tmp_path):
    root, _ = good(tmp_path, "cityscapes")
    save(place(root, "cityscapes", 2), Image.fromarray(np.full((12, 20), 255, np.uint8)))
    with pytest.raises(InputError, match="16-bit"):
        open_cityscapes(root, "train", (16, 16)).load(0)


@pytest.mark.parametrize("layout, folder", [("ade20k", "annotations"), ("cityscapes", "gtFine"), ("folder", "labels")])
def test_a_dataset_without_its_label_maps_shows_the_tree(tmp_path, layout, folder):
    root, _ = good(tmp_path, layout)
    shutil.rmtree(root / folder)
    with pytest.raises(InputError, match="no label or instance maps there(.|\n)*expects\n") as error:
        OPEN[layout](root, "train", (16, 16))
    assert ARCHIVES[OPTION[layout]][0] in str(error.value)


@pytest.mark.parametrize("depth", ["1 bit", "16 bits"])
def test_label_maps_of_other_depths_are_read_by_value(tmp_path, depth):
    """A mask saved with one bit a pixel has the classes 0 and 1; 16 bits hold 0..3 as well."""
    root, _ = good(tmp_path, "folder")
    values = np.random.default_rng(0).integers(2 if depth == "1 bit" else 4, size=(12, 20))
    save(place(root, "folder", 1), Image.fromarray(values.astype(bool if depth == "1 bit" else np.uint16)))
    assert Image.open(place(root, "folder", 1)).mode == {"1 bit": "1", "16 bits": "I;16"}[depth]
    assert np.array_equal(open_folder(root, "train", (12, 20)).labels(0), values)


# ------------------------------------------------------------------------------------- pictures, files, classes

@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
@pytest.mark.parametrize("layout", ["ade20k", "coco_stuff", "official", "folder"])
def test_jpegs_of_any_mode_have_the_right_colours(tmp_path, layout, mode):
    """Slopes of red, green and blue (of grey), as they were before the JPEG, but for its losses."""
    y, x = np.mgrid[:48, :64]
    picture = np.stack([4 * x, 5 * y, 255 - 4 * x], axis=2).astype(np.uint8)
    if mode == "L":
        picture = picture[..., :1].repeat(3, axis=2)
    labels = np.full((48, 64), VALUES[layout][1], np.uint8)
    third = {"ade20k": None, "official": []}.get(layout, labels)
    write(tmp_path, layout, {"7": (Image.fromarray(picture).convert(mode), labels, third)})
    assert Image.open(place(tmp_path, layout, 0, "7")).mode == mode
    found = OPEN[layout](tmp_path, "train", (48, 64))[0]["image"].permute(1, 2, 0).numpy().astype(int)
    apart = np.abs(found - picture)
    assert apart.mean() < 2 and apart.max() < 20, f"{mode} colours are off by {apart.mean():.1f}, at most {apart.max()}"


@pytest.mark.parametrize("layout", ["ade20k", "folder"])
def test_the_cameras_rotation_flag(tmp_path, layout):
    """Benchmarks' label maps follow the stored pixels; one's own are drawn over what a viewer shows."""
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8] = 255                                                   # bright left half
    exif = Image.Exif()
    exif[0x0112] = 6                                                      # to be turned by 90 degrees, clockwise
    shown = stored if layout == "ade20k" else np.rot90(stored, -1)
    labels = np.ones(shown.shape[:2], np.uint8)
    root = write(tmp_path, layout, {"7": (stored, labels, None)})
    Image.fromarray(stored).save(place(root, layout, 0, "7"), exif=exif)
    found = OPEN[layout](root, "train", (16, 16)).load(0)[0]
    assert found.shape == shown.shape and np.abs(found.astype(int) - shown).mean() < 5


@pytest.mark.parametrize("layout", PLACES)
def test_hidden_files_are_no_samples(tmp_path, layout):
    """._x.jpg, as macOS leaves them behind; and other people's notes."""
    root, _ = good(tmp_path, layout)
    for which in range(2):
        file = place(root, layout, which)
        save(file.with_name(f"._{file.name}"), b"macOS")
        save(file.with_name("notes.txt"), "beautiful")
    dataset = OPEN[layout](root, "train", (16, 16))
    assert dataset.names == list(NAMES) and dataset[0]["image"].shape == (3, 16, 16)


def test_endings_in_capitals_do_not_matter(tmp_path):
    root, _ = good(tmp_path, "ade20k")
    place(root, "ade20k", 0).rename(place(root, "ade20k", 0).with_suffix(".JPG"))
    assert len(open_ade20k(root, "train", (16, 16))) == len(NAMES)


@pytest.mark.parametrize("empty_in", ["leftImg8bit", "gtFine", "both"])
def test_a_cityscapes_city_without_files_is_no_fault(tmp_path, empty_in):
    root, _ = good(tmp_path, "cityscapes")
    for folder in ("leftImg8bit", "gtFine"):
        if empty_in in (folder, "both"):
            (root / folder / "train/bonn").mkdir()
    assert open_cityscapes(root, "train", (16, 16)).names == list(NAMES)


def test_cityscapes_reads_every_city_and_no_other_file(tmp_path):
    """Polygons, colour maps and label maps of train ids lie beside the files that are used."""
    root, samples = good(tmp_path, "cityscapes")
    for city in ("leftImg8bit/train/bonn", "gtFine/train/bonn"):
        (root / city).mkdir()
    for which, plane in enumerate(random_sample("cityscapes", np.random.default_rng(1), 6, 9)):
        save(root / PLACES["cityscapes"][which].format("bonn_1").replace("ulm", "bonn"), plane)
    for other, content in (("polygons.json", "{}"), ("color.png", COLOURS[None]), ("labelTrainIds.png", COLOURS)):
        save(root / f"gtFine/train/ulm/{NAMES[0]}_gtFine_{other}", content)
    dataset = open_cityscapes(root, "train", (16, 16))
    assert dataset.names == [*NAMES, "bonn_1"] and dataset.load(3)[0].shape == (6, 9, 3)


def test_cityscapes_pictures_of_one_name_in_two_cities_are_not_lost(tmp_path):
    """Refused, or both there: never one of them alone."""
    root, _ = good(tmp_path, "cityscapes")
    for folder in ("leftImg8bit", "gtFine"):
        shutil.copytree(root / folder / "train/ulm", root / folder / "train/bonn")
    try:
        found = len(open_cityscapes(root, "train", (16, 16)))
    except InputError as error:
        assert "bonn" in str(error) and "ulm" in str(error) and NAMES[0] in str(error), f"no file is named: {error}"
    else:
        assert found == 2 * len(NAMES), f"{2 * len(NAMES)} pictures with labels, {found} samples"


@pytest.mark.parametrize("layout, count, unknown, names, colours", [
    ("ade20k", 151, 0, {0: "unlabelled", 1: "wall", 2: "building", 3: "sky", 13: "person", 21: "car", 22: "water",
                        137: "traffic light", 150: "flag"},
     {0: (0, 0, 0), 1: (120, 120, 120), 2: (180, 120, 120), 3: (6, 230, 230), 13: (150, 5, 61), 150: (92, 0, 255)}),
    ("cityscapes", 35, 0, {0: "unlabeled", 7: "road", 8: "sidewalk", 11: "building", 20: "traffic sign", 26: "car",
                           33: "bicycle", 34: "license plate"},
     {7: (128, 64, 128), 8: (244, 35, 232), 23: (70, 130, 180), 24: (220, 20, 60), 26: (0, 0, 142), 33: (119, 11, 32)}),
    ("coco_stuff", 183, 182, {0: "person", 1: "bicycle", 16: "cat", 89: "toothbrush", 90: "hair brush", 91: "banner",
                              92: "blanket", 123: "grass", 168: "tree", 181: "wood", 182: "unlabelled"},
     {182: (0, 0, 0)})])
def test_classes_names_and_colours(tmp_path, layout, count, unknown, names, colours):
    dataset = OPEN[layout](good(tmp_path, layout)[0], "train", (16, 16))
    assert (len(dataset.classes), dataset.palette.shape, dataset.palette.dtype) == (count, (count, 3), np.uint8)
    assert dataset.unknown == unknown and len(set(dataset.classes)) == count
    assert {c: dataset.classes[c] for c in names} == names
    assert {c: tuple(dataset.palette[c].tolist()) for c in colours} == colours


def test_cityscapes_train_ids(tmp_path):
    """The 19 classes that are scored, as the Cityscapes scripts number them; all others -1."""
    train_id = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    dataset = open_cityscapes(good(tmp_path, "cityscapes")[0], "train", (16, 16))
    assert list(dataset.score_ids) == [train_id.get(c, -1) for c in range(35)]


@pytest.mark.parametrize("layout", ["ade20k", "coco_stuff"])
def test_the_unknown_class_is_not_scored(tmp_path, layout):
    dataset = OPEN[layout](good(tmp_path, layout)[0], "train", (16, 16))
    assert [c for c, score in enumerate(dataset.score_ids) if score < 0] == [dataset.unknown]
    assert len(set(dataset.score_ids.tolist())) == len(dataset.classes)


def test_a_classes_txt_from_a_windows_editor(tmp_path):
    """A byte order mark, CRLF and empty lines at the end are not part of any name."""
    root, _ = good(tmp_path, "folder")
    save(root / "classes.txt", b"\xef\xbb\xbfsky\r\nground \r\nB\xc3\xa4ume\r\nUnlabeled\r\n\r\n")
    dataset = open_folder(root, "train", (16, 16))
    assert (dataset.classes, dataset.unknown) == (("sky", "ground", "Bäume", "Unlabeled"), 3)


# ------------------------------------------------------------------------------- resized, cropped, flipped (Sec. 4.1)

def loops_kept(old, new):
    """Nearest neighbour: output i of `new` takes the input under its middle, (i + 1/2) old / new."""
    return [max(j for j in range(old) if 2 * new * j <= (2 * i + 1) * old) for i in range(new)]


def loops_window(height, width, H, W, margin, key, seed):
    """Which row and column of the file each output row and column shows, and the window: (h, w, top, left, flipped)."""
    h, w = (round(H * margin), round(W * margin)) if key else (H, W)
    top, left, flipped = 0, 0, False
    if key:                                  # the documented order: top, left, flip, from (seed, epoch, draw) alone
        rng = np.random.default_rng((seed, key[1], key[2]))
        top, left, flipped = int(rng.integers(h - H + 1)), int(rng.integers(w - W + 1)), rng.random() < 0.5
    rows, columns = loops_kept(height, h), loops_kept(width, w)
    rows, columns = [rows[top + i] for i in range(H)], [columns[left + i] for i in range(W)]
    return rows, columns[::-1] if flipped else columns, (h, w, top, left, flipped)


def loops_offsets(ids):
    """Sec. 4.1 for lists of lists of ids, 0 = none: the way to the centre of mass, in shares of height and width."""
    H, W, pixels = len(ids), len(ids[0]), {}
    for y in range(H):
        for x in range(W):
            pixels.setdefault(ids[y][x], []).append((y, x))
    offsets = np.zeros((2, H, W))
    for one, members in pixels.items():
        centre = [sum(p[i] for p in members) / len(members) for i in (0, 1)]
        for y, x in members if one else ():
            offsets[:, y, x] = (centre[0] - y) / H, (centre[1] - x) / W
    return offsets


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("layout", PLACES)
def test_samples_are_the_files_resized_cropped_and_flipped(tmp_path, layout, seed):
    """Random maps, sizes and draws. Resized to 286/256 of the size and cropped, Cityscapes only resized; flipped or
    not; offsets those of the ids after all of that. Without a draw only resized."""
    rng = np.random.default_rng((seed, 77))
    (height, width), (H, W) = rng.integers(2, 40, 2).tolist(), rng.integers(4, 26, 2).tolist()
    sample = random_sample(layout, rng, height, width)
    dataset = OPEN[layout](write(tmp_path, layout, {NAMES[0]: sample}), "train", (H, W), seed=seed)
    classes, keys = loops_meaning(layout, *sample[1:])
    ids = loops_numbers(keys)
    picture = Image.open(place(tmp_path, layout, 0))
    for key in (None, *((0, *rng.integers(1000, size=2).tolist()) for _ in range(6))):
        rows, columns, (h, w, top, left, flipped) = loops_window(
            height, width, H, W, 1 if layout == "cityscapes" else 286 / 256, key, seed)
        found = dataset[key or 0]
        assert found["label_map"].tolist() == [[int(classes[y, x]) for x in columns] for y in rows], f"labels of {key}"
        resized = np.asarray(picture.resize((w, h), Image.BICUBIC))[top:top + H, left:left + W]
        assert np.array_equal(found["image"].permute(1, 2, 0), resized[:, ::-1] if flipped else resized), (
            f"picture of {key}")
        assert ("offsets" in found) == dataset.has_instances
        if dataset.has_instances:
            expected = loops_offsets([[int(ids[y, x]) for x in columns] for y in rows])
            np.testing.assert_allclose(found["offsets"], expected, atol=1e-6, err_msg=f"offsets of {key}")


@pytest.mark.parametrize("layout", PLACES)
def test_a_draw_shows_all_of_a_cityscapes_picture_and_a_part_of_the_others(tmp_path, layout):
    """At 256x256, 286x286 with a crop: the first and last row of the file disappear in most draws, not in all."""
    labels = np.full((286, 286), VALUES[layout][0], np.uint8)
    labels[0], labels[-1] = VALUES[layout][1], VALUES[layout][2]
    third = None if layout in ("ade20k", "coloured") else [] if layout == "official" else labels.astype(np.uint16) * 0
    third = third.astype(np.uint8) if layout == "coco_stuff" else third
    dataset = OPEN[layout](write(tmp_path, layout, {"7": (np.zeros((286, 286, 3), np.uint8), labels, third)}), "train",
                           (286, 286) if layout == "cityscapes" else (256, 256))
    values = [set(dataset[0, 0, draw]["label_map"].unique().tolist()) for draw in range(12)]
    whole = sum(len(v) == 3 for v in values)
    assert whole == (12 if layout == "cityscapes" else 0), f"{whole} of 12 draws show first and last row"
    assert dataset.planes((0, 0, 3))[1].shape == dataset.image_size


def test_pictures_are_shrunk_with_antialiasing(tmp_path):
    """Black and white pixels in turn become grey, not black or white."""
    y, x = np.mgrid[:64, :64]
    board = (255 * ((x + y) % 2)).astype(np.uint8)[..., None].repeat(3, axis=2)
    write(tmp_path, "cityscapes", {"7": (board, np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint16))})
    image = open_cityscapes(tmp_path, "train", (16, 16))[0]["image"]
    assert 100 < image.min() and image.max() < 155, f"values from {image.min()} to {image.max()}"


# -------------------------------------------------------------------------------------------- rare-class sampling

def loops_f_k(maps, unknown):
    """Of each map: the share of the maps in which its rarest class appears (1 if it has none)."""
    seen = [{int(v) for row in labels.tolist() for v in row} - {unknown} for labels in maps]
    share = {c: sum(c in other for other in seen) / len(seen) for one in seen for c in one}
    return [min([share[c] for c in one], default=1.0) for one in seen]


@pytest.fixture(scope="module")
def ade_maps(tmp_path_factory):
    """Fifteen maps; wall in almost all, flag in one; unlabelled pixels in three, one of them without anything else."""
    rng, maps = np.random.default_rng(3), []
    for i in range(15):
        classes = [c for c, p in ((1, 0.9), (2, 0.6), (13, 0.3), (21, 0.2)) if rng.random() < p]
        classes += {4: [0], 5: [0], 9: [150]}.get(i, [])
        maps.append(rng.permutation(np.resize(classes or [1], 36)).reshape(6, 6).astype(np.uint8))
    maps[11] = np.zeros((6, 6), np.uint8)
    root = tmp_path_factory.mktemp("ade")
    write(root, "ade20k", {f"{i:02d}": (np.zeros((6, 6, 3), np.uint8), m, None) for i, m in enumerate(maps)})
    return open_ade20k(root, "train", (16, 16)), maps


@pytest.mark.parametrize("world", [1, 4])
def test_images_are_drawn_as_often_as_their_rarest_class_says(ade_maps, world):
    """100,000 draws, 25,000 on each of four ranks: every count within five standard deviations of n p, p proportional
    to f_k^(-1/2), f_k by loops over the maps; the table read from the files."""
    dataset, maps = ade_maps
    f_k = loops_f_k(maps, unknown=0)
    assert len(set(f_k)) > 4 and min(f_k) == 1 / 15, "this test wants rare and common classes"
    expected = np.array([f ** -0.5 for f in f_k]) / sum(f ** -0.5 for f in f_k)
    p = sampling_probabilities(class_presence(dataset), dataset.unknown)
    draws = [[key for batch in RareClassBatches(p, 8, 0, 12_500, rank=rank, world=world) for key in batch]
             for rank in range(world)]
    assert len({key[1:] for of_rank in draws for key in of_rank}) == 100_000, "two ranks, or one twice, see one draw"
    counts = np.array([np.bincount([i for i, _, _ in of_rank], minlength=15) for of_rank in draws])
    assert counts.sum(axis=1).tolist() == [100_000 // world] * world
    for drawn, n in (*((c, 100_000 // world) for c in counts), (counts.sum(axis=0), 100_000)):
        deviations = (drawn - n * expected) / np.sqrt(n * expected * (1 - expected))
        assert np.abs(deviations).max() < 5, f"too often or too rarely, in deviations: {deviations.round(1)}"
        assert np.abs(deviations).max() > 0.2, "random draws never fit that well"


# ------------------------------------------------------------------------------------------- the presence cache

@pytest.mark.parametrize("layout", PLACES)
def test_class_presence_is_what_the_files_hold(tmp_path, layout):
    root, samples = good(tmp_path, layout)
    samples[NAMES[2]][1][:] = VALUES[layout][1]
    samples[NAMES[2]][1][29, 10] = VALUES[layout][-1]                   # one pixel is enough
    dataset = OPEN[layout](write(root, layout, samples), "train", (16, 16))
    for row, name in zip(class_presence(dataset), NAMES):
        classes, _ = loops_meaning(layout, *samples[name][1:])
        assert set(np.flatnonzero(row).tolist()) == set(classes.ravel().tolist()), f"classes of {name}"


def refused_presence(*_):
    raise AssertionError("a label map was read")


@pytest.mark.parametrize("change", ["nothing", "a newer label file", "a label file of another size", "a new sample",
                                    "a sample less", "another palette"])
@pytest.mark.parametrize("layout", PLACES)
def test_the_presence_cache_is_used_as_long_as_the_dataset_stays(tmp_path, monkeypatch, layout, change):
    root, samples = good(tmp_path / "data", layout)
    cache, label_file = tmp_path / "presence.npz", place(root, layout, 1)
    first = class_presence(OPEN[layout](root, "train", (16, 16)), cache)
    times = label_file.stat()
    other = np.full((12, 20), VALUES[layout][1], np.uint8)
    other = COLOURS[other] if layout == "coloured" else other
    if change == "a newer label file":
        save(label_file, other)
        label_file.write_bytes(label_file.read_bytes().ljust(times.st_size, b"\0"))     # the size stays
        os.utime(label_file, ns=(times.st_atime_ns, times.st_mtime_ns + 10 ** 9))
    elif change == "a label file of another size":
        save(label_file, other)
        os.utime(label_file, ns=(times.st_atime_ns, times.st_mtime_ns))                 # as copied with its time
        assert label_file.stat().st_size != times.st_size
    elif change in ("a new sample", "a sample less"):
        samples = {**samples, "000000000009": samples[NAMES[0]]} if "new" in change else {NAMES[1]: samples[NAMES[1]]}
        shutil.rmtree(root)
        write(root, layout, samples)
    elif change == "another palette":
        if layout != "coloured":
            pytest.skip("only coloured label maps have a palette")
        save(label_file, COLOURS[np.zeros((12, 20), int)])
        first = class_presence(OPEN[layout](root, "train", (16, 16)), cache)
        save(root / "palette.txt", "".join("{} {} {}\n".format(*colour) for colour in COLOURS[::-1]))
    dataset = OPEN[layout](root, "train", (16, 16))
    if change == "nothing":
        monkeypatch.setattr(Pictures, "presence", refused_presence)
        assert np.array_equal(class_presence(dataset, cache), first)
    else:
        again, fresh = class_presence(dataset, cache), class_presence(dataset)
        assert np.array_equal(again, fresh), "the table is that of the dataset as it was before"
        assert not np.array_equal(fresh, first), "this test's change does not change the table"


# ------------------------------------------------------------------------------------------------- bad input

def half(old):
    return old[:len(old) // 2]


def edited(change):
    """A change to the JSON: change(content) in place."""
    def edit(old):
        content = json.loads(old)
        change(content)
        return json.dumps(content)
    return edit


def segmentation(value, crowd=0):
    """The first annotation's outlines or runs become `value`."""
    return edited(lambda content: content["annotations"][0].update(segmentation=value, iscrowd=crowd))


def labels_with(value, dtype=np.uint8):
    plane = np.zeros((12, 20), dtype)
    plane[3, 4] = value
    return plane


JSON = "annotations/instances_train2017.json"
GREY, RGB = np.zeros((12, 20), np.uint8), np.zeros((12, 20, 3), np.uint8)
FLOAT = Image.fromarray(np.full((12, 20), 0.5, np.float32))
UNREAD = ["cannot be read as a picture", "replace or remove it"]
NOT_COCO = ["expected", "annotations_trainval2017.zip"]
PALETTE_WANTED = ["expected 4 different lines", "R G B", "classes.txt"]
BAD = {  # layout, the file (0 picture, 1 label map, 2 instances, or its path), what it becomes (None: it is removed),
    # what the message says beside the file's path (for a removed file: beside its partner's)
    "picture without label": ("ade20k", 1, None, ["annotations", "no file of that name", "add its partner"]),
    "label without picture": ("ade20k", 0, None, ["images", "no file of that name", "or remove it"]),
    "city picture without label": ("cityscapes", 1, None, ["labelIds", "add its partner or remove it"]),
    "city picture without instances": ("cityscapes", 2, None, ["instanceIds", "add its partner or remove it"]),
    "city label without picture": ("cityscapes", 0, None, ["leftImg8bit", "add its partner or remove it"]),
    "COCO picture without label": ("official", 1, None, ["stuffthingmaps", "add its partner or remove it"]),
    "COCO picture without instances": ("coco_stuff", 2, None, ["train_inst", "add its partner or remove it"]),
    "own picture without instances": ("folder", 2, None, ["instances", "add its partner or remove it"]),
    "truncated JPEG": ("ade20k", 0, half, UNREAD),
    "truncated PNG picture": ("cityscapes", 0, half, UNREAD),
    "truncated label map": ("coco_stuff", 1, half, UNREAD),
    "truncated instance map": ("cityscapes", 2, half, UNREAD),
    "file of no bytes": ("official", 0, b"", UNREAD),
    "label map of no bytes": ("coco_stuff", 1, b"", UNREAD),
    "text named png": ("folder", 1, "no picture\n", UNREAD),
    "web page named jpg": ("official", 0, "<!DOCTYPE html><html>404</html>", UNREAD),
    "label map of another size": ("ade20k", 1, np.ones((20, 12), np.uint8), ["12x20", "20x12", "the same size"]),
    "city label map of another size": ("cityscapes", 1, GREY[:6, :10], ["10x6", "20x12", "the same size"]),
    "instance map of another size": ("coco_stuff", 2, GREY[:6, :10], ["10x6", "20x12", "the same size"]),
    "ADE label 151": ("ade20k", 1, labels_with(151), ["[151]", "0..150", "correct the label map"]),
    "ADE label 255": ("ade20k", 1, labels_with(255), ["[255]", "0..150", "correct the label map"]),
    "Cityscapes label 34": ("cityscapes", 1, labels_with(34), ["[34]", "255", "correct the label map"]),
    "Cityscapes label 254": ("cityscapes", 1, labels_with(254), ["[254]", "255", "correct the label map"]),
    "COCO label 182": ("coco_stuff", 1, labels_with(182), ["[182]", "255", "correct the label map"]),
    "COCO label 183": ("official", 1, labels_with(183), ["[183]", "255", "correct the label map"]),
    "COCO label 254": ("official", 1, labels_with(254), ["[254]", "255", "correct the label map"]),
    "own label 4": ("folder", 1, labels_with(4), ["[4]", "0..3", "the class list"]),
    "16-bit label 256": ("folder", 1, labels_with(256, np.uint16), ["[256]", "0..3", "the class list"]),
    "16-bit label 26001": ("cityscapes", 1, labels_with(26001, np.uint16), ["[26001]", "correct the label map"]),
    "coloured ADE label map": ("ade20k", 1, RGB, ["RGB", "one channel", "greyscale"]),
    "RGB label map without a palette": ("folder", 1, RGB, ["RGB", "one channel", "palette.txt"]),
    "RGBA label map": ("coloured", 1, Image.fromarray(RGB).convert("RGBA"), ["RGBA", "save it as"]),
    "float label map": ("folder", 1, FLOAT, ["F", "save it as"]),
    "colour of no class": ("coloured", 1, RGB + np.uint8(7), ["(7, 7, 7)", "palette", "add them"]),
    "smoothed colours": ("coloured", 1, (RGB + np.arange(20, dtype=np.uint8)[:, None]),
                         ["(0, 0, 0)", "20 in all", "without smoothing"]),
    "RGB instance map": ("folder", 2, RGB, ["one channel", "greyscale PNG"]),
    "RGB city instance map": ("cityscapes", 2, RGB, ["one channel", "greyscale PNG"]),
    "float instance map": ("folder", 2, FLOAT, ["F", "greyscale PNG"]),
    "float picture": ("cityscapes", 0, FLOAT, ["mode F", "8 bits", "convert it"]),
    "16-bit grey picture": ("cityscapes", 0, GREY.astype(np.uint16), ["I;16", "8 bits", "convert it"]),
    "full ADE20K parts": ("ade20k", "annotations/training/ADE_train_00000001_parts_1.png", GREY,
                          ["full ADE20K", "ADEChallengeData2016.zip"]),
    "full ADE20K seg": ("ade20k", "annotations/training/ADE_train_00000001_seg.png", RGB,
                        ["full ADE20K", "ADEChallengeData2016.zip"]),
    "two pictures of one name": ("folder", f"images/train/{NAMES[0]}.png", RGB, ["same name", ".jpg", "remove one"]),
    "palette of three lines": ("coloured", "palette.txt", "1 1 1\n2 2 2\n3 3 3\n", [*PALETTE_WANTED, "found 3"]),
    "palette of five lines": ("coloured", "palette.txt", "1 1 1\n2 2 2\n3 3 3\n4 4 4\n5 5 5\n", PALETTE_WANTED),
    "palette with 256": ("coloured", "palette.txt", "1 1 1\n2 2 256\n3 3 3\n4 4 4\n", [*PALETTE_WANTED, "line 2"]),
    "palette with -1": ("coloured", "palette.txt", "1 1 1\n2 2 2\n3 3 -1\n4 4 4\n", [*PALETTE_WANTED, "line 3"]),
    "palette with equal colours": ("coloured", "palette.txt", "1 1 1\n2 2 2\n1 1 1\n4 4 4\n", PALETTE_WANTED),
    "palette with colours written twice": ("coloured", "palette.txt", "1 1 1\n2 2 2\n001 1 1\n4 4 4\n", PALETTE_WANTED),
    "palette of words": ("coloured", "palette.txt", "red\ngreen\nblue\nblack\n", [*PALETTE_WANTED, "line 1"]),
    "palette of fractions": ("coloured", "palette.txt", "0.5 0 0\n0 1 0\n1 1 1\n1 0 0\n", [*PALETTE_WANTED, "line 1"]),
    "palette with names": ("coloured", "palette.txt", "1 1 1 sky\n2 2 2 a\n3 3 3 b\n4 4 4 c\n", PALETTE_WANTED),
    "palette of no lines": ("coloured", "palette.txt", "", PALETTE_WANTED),
    "palette not UTF-8": ("coloured", "palette.txt", b"\xff\xfe1\x00", ["UTF-8", "save it"]),
    "no classes": ("folder", "classes.txt", "", ["1 to 256 lines", "class name"]),
    "empty line in classes": ("folder", "classes.txt", "sky\n\ntree\nhouse\n", ["1 to 256 lines", "1 of them empty"]),
    "257 classes": ("folder", "classes.txt", "".join(f"c{i}\n" for i in range(257)), ["1 to 256 lines", "257"]),
    "classes not UTF-8": ("folder", "classes.txt", "sky\nB\u00e4ume\n".encode("latin-1"), ["UTF-8", "save it"]),
    "JSON cut off": ("official", JSON, half, NOT_COCO),
    "JSON of no bytes": ("official", JSON, b"", NOT_COCO),
    "JSON not UTF-8": ("official", JSON, b"\xff\xfe\x00", NOT_COCO),
    "JSON list": ("official", JSON, "[]", NOT_COCO),
    "JSON without annotations": ("official", JSON, edited(lambda c: c.pop("annotations")), NOT_COCO),
    "JSON without images": ("official", JSON, edited(lambda c: c.pop("images")), NOT_COCO),
    "JSON without sizes": ("official", JSON, edited(lambda c: c["images"][0].pop("height")), NOT_COCO),
    "JSON without areas": ("official", JSON, edited(lambda c: c["annotations"][3].pop("area")), NOT_COCO),
    "JSON of captions": ("official", JSON, edited(lambda c: c.update(annotations=[
        {"image_id": 7, "id": 1, "caption": "a dog"}])), NOT_COCO),
    "JSON of the other split": ("official", JSON, edited(lambda c: c.update(images=[{"id": 1, "height": 12, "width": 20}])),
                                ["does not know 3", NAMES[0], "same split"]),
    "compressed RLE": ("official", JSON, segmentation({"counts": "fXh02^;0", "size": [12, 20]}, 1), NOT_COCO),
    "crowd without counts": ("official", JSON, segmentation({"size": [12, 20]}, 1), NOT_COCO),
    "outline of 5 numbers": ("official", JSON, segmentation([[1, 1, 5, 1, 5]]), NOT_COCO),
    "outline of 7 numbers": ("official", JSON, segmentation([[1, 1, 5, 1, 5, 5, 1]]), NOT_COCO),
    "outline of 2 points": ("official", JSON, segmentation([[1, 1, 5, 1]]), NOT_COCO),
    "outline of pairs": ("official", JSON, segmentation([[[1, 1], [5, 1], [5, 5], [1, 5], [1, 3], [1, 2]]]), NOT_COCO),
    "outline of words": ("official", JSON, segmentation([["a", "b", "c", "d", "e", "f"]]), NOT_COCO),
    "outline of nulls": ("official", JSON, segmentation([[None] * 6]), NOT_COCO),
    "no outline": ("official", JSON, segmentation(None), NOT_COCO),
    "runs below zero": ("official", JSON, segmentation({"counts": [-10, 250], "size": [12, 20]}, 1), ["expected"]),
    "runs of halves": ("official", JSON, segmentation({"counts": [0.5, 239.5], "size": [12, 20]}, 1), ["expected"]),
    "instances of neither kind": ("official", JSON, None, ["neither train_inst", "stuffthingmaps"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(tmp_path, case):
    """An InputError that names the file, or for a removed one its partner's or the folder, and says what to do."""
    layout, which, becomes, says = BAD[case]
    root, _ = good(tmp_path, layout)
    file = root / (which if isinstance(which, str) else PLACES[layout][which].format(NAMES[0]))
    if becomes is None:
        file.unlink()
        named = [str(root)] if which == JSON else [str(root), NAMES[0]]
    else:
        save(file, becomes(file.read_bytes()) if callable(becomes) else becomes)
        named = [str(file)]
    with pytest.raises(InputError) as error:
        dataset = OPEN[layout](root, "train", (16, 16))
        for i in range(len(dataset)):
            dataset[i]
    message = str(error.value)
    missing = [word for word in (*named, *says) if word not in message]
    assert not missing, f"the message does not say {missing}: {message}"
    assert "\n" not in message or "expects\n  DIR/" in message, f"more than one line, and no tree: {message}"


def test_coco_pictures_of_another_size_than_their_outlines_are_refused(tmp_path):
    """Pictures and label maps shrunk beforehand, the outlines as published: they would lie anywhere."""
    root, samples = good(tmp_path, "official")
    for which, mode in ((0, Image.BICUBIC), (1, Image.NEAREST)):
        save(place(root, "official", which), Image.open(place(root, "official", which)).resize((10, 6), mode))
    edit = edited(lambda c: c.update(annotations=[a for a in c["annotations"] if not a["iscrowd"]]))
    save(root / JSON, edit((root / JSON).read_bytes()))
    with pytest.raises(InputError) as error:
        open_coco_stuff(root, "train", (16, 16))[0]
    assert all(word in str(error.value) for word in (str(place(root, "official", 0)), "10x6", "original size")), (
        str(error.value))


@pytest.mark.parametrize("counts", [[10, 90], [10, 230, 5], [10]])
def test_crowds_of_another_size_than_the_picture_are_refused(tmp_path, counts):
    """The sum of the run lengths is the number of pixels; the picture is named, it was resized most likely."""
    root, _ = good(tmp_path, "official")
    save(root / JSON, segmentation({"counts": counts, "size": [12, 20]}, 1)((root / JSON).read_bytes()))
    with pytest.raises(InputError) as error:
        open_coco_stuff(root, "train", (16, 16))[0]
    assert all(word in str(error.value) for word in (str(place(root, "official", 0)), "20x12", "original size")), (
        str(error.value))


def test_coco_pictures_that_are_not_named_by_ids_are_refused(tmp_path):
    root, _ = good(tmp_path, "official")
    for which in (0, 1):
        place(root, "official", which).rename(place(root, "official", which, "holiday"))
    with pytest.raises(InputError, match="holiday"):
        open_coco_stuff(root, "train", (16, 16))


@pytest.mark.parametrize("layout", PLACES)
def test_a_link_to_nowhere_is_refused(tmp_path, layout):
    """Datasets are often folders of links. Also before the label maps are read for the sampling."""
    root, _ = good(tmp_path, layout)
    file = place(root, layout, 1)
    file.unlink()
    file.symlink_to(tmp_path / "gone.png")
    dataset = OPEN[layout](root, "train", (16, 16))
    for read in (lambda: dataset[0], lambda: class_presence(dataset)):
        with pytest.raises(InputError, match=re.escape(str(file))):
            read()


ARCHIVES = {"ade20k": ["ADEChallengeData2016.zip", "sceneparsing.csail.mit.edu", "images/training", "annotations/"],
            "cityscapes": ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "www.cityscapes-dataset.com",
                           "labelIds", "instanceIds"],
            "coco_stuff": ["train2017.zip", "val2017.zip", "annotations_trainval2017.zip", "cocodataset.org",
                           "stuffthingmaps_trainval2017.zip", "github.com/nightrome/cocostuff", "train_inst"],
            "folder": ["classes.txt", "images/train", "labels/train", "palette.txt"]}


@pytest.mark.parametrize("what", ["nothing there", "an empty folder", "a file", "no option"])
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_missing_dataset_gets_its_tree_archives_and_owner(tmp_path, name, what):
    path = tmp_path / ("nothing" if what == "nothing there" else "x" if what == "a file" else "")
    if what == "a file":
        path.write_text("x")
    with pytest.raises(InputError) as error:
        open_dataset(name, None if what == "no option" else path, "train", (16, 16))
    says = [*ARCHIVES[name], f"--dataset {name}", "--data-path DIR" if what == "no option" else str(path)]
    assert not [word for word in says if word not in str(error.value)], str(error.value)


@pytest.mark.parametrize("layout", PLACES)
def test_the_parent_of_a_dataset_is_refused_with_the_right_folder(tmp_path, layout):
    """ADEChallengeData2016 lies in what was unpacked into: the message says which folder to give."""
    root, _ = good(tmp_path / "inner", layout)
    with pytest.raises(InputError, match=re.escape(f"--data-path {root}")):
        OPEN[layout](tmp_path, "train", (16, 16))


@pytest.mark.parametrize("layout", PLACES)
def test_a_split_that_is_not_there_is_refused(tmp_path, layout):
    """With the folder that is missing, and the whole tree."""
    root, _ = good(tmp_path, layout)
    with pytest.raises(InputError, match="no pictures") as error:
        OPEN[layout](root, "val", (16, 16))
    assert str(root) in str(error.value) and "val" in str(error.value)
    assert ARCHIVES[OPTION[layout]][0] in str(error.value)


# ------------------------------------------------------------------------------------------- python data.py

@pytest.fixture
def check(monkeypatch, capsys):
    """check(*options) -> exit code, stdout, stderr of `python data.py OPTIONS`, in this process (torch is loaded)."""
    def run(*options):
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, options)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "data.py"), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()
    return run


def process(*options):
    """The same for real."""
    return subprocess.run([sys.executable, str(ROOT / "data.py"), *map(str, options)], capture_output=True, text=True)


def table(stdout):
    """{class: (name, share as text, samples)} of the report."""
    rows = re.findall(r"^ *(\d+) (.+?) +([\d.]+%) +([\d,]+)(?: +unknown)?$", stdout, re.M)
    return {int(c): (name, share, int(count.replace(",", ""))) for c, name, share, count in rows}


@pytest.mark.parametrize("layout", PLACES)
def test_the_check_counts_what_is_there(tmp_path, check, layout):
    """Samples, sizes, instances, and pixels and samples of every class, against numpy's own count of the maps."""
    root, samples = good(tmp_path / "data", layout)
    page = tmp_path / "page.png"
    code, stdout, stderr = check("--dataset", OPTION[layout], "--data-path", root, "--image-size", "64x32", "--output",
                                 page)
    assert (code, stderr) == (0, "")
    meanings = [loops_meaning(layout, labels, third) for _, labels, third in samples.values()]
    classes = [m[0].ravel() for m in meanings]
    dataset = OPEN[layout](root, "train", (64, 32))
    expected = {c: (dataset.classes[c], f"{(np.concatenate(classes) == c).mean():.3%}", sum(c in m for m in classes))
                for c in np.unique(np.concatenate(classes)).tolist()}
    assert table(stdout) == expected
    assert f"3 samples, {len(dataset.classes)} classes" in stdout and "2 portrait, 0 square, 1 landscape" in stdout
    assert "3 different, 12x20 to 30x11" in stdout, "sizes are height x width"
    instances = sum(len({key for row in keys for key in row} - {None}) for _, keys in meanings)
    assert (f"{instances} instances" if dataset.has_instances else "no instances") in stdout
    never = re.search(r"^never seen: (.*)$", stdout, re.M)[1]
    absent = [f"{c} {name}" for c, name in enumerate(dataset.classes) if c not in expected]
    assert never == (", ".join(absent) or "none"), "classes that no file has"

    drawn = np.asarray(Image.open(page))
    wide = 4 if dataset.has_instances else 2
    assert drawn.shape == (16 + 3 * 128, wide * 64, 3), "16 rows for the titles, samples twice enlarged"
    for i, (labels, _) in enumerate(meanings):
        rows, columns = loops_kept(labels.shape[0], 64), loops_kept(labels.shape[1], 32)
        colours = [[dataset.palette[labels[y, x]] for x in columns] for y in rows]
        shown = drawn[16 + 128 * i:16 + 128 * (i + 1), 64:128]
        assert np.array_equal(shown[::2, ::2], colours) and np.array_equal(shown[1::2, 1::2], colours), (
            f"row {i}, second column: not the label map in its colours")
    if dataset.has_instances:
        none = np.array([[meanings[0][1][y][x] is None for x in loops_kept(20, 32)] for y in loops_kept(12, 64)])
        assert not drawn[16:144:2, 128:192:2][none].any() and drawn[16:144:2, 128:192:2][~none].all(), (
            "instances are coloured, the rest is black")
        assert (drawn[16:144:2, 192::2][none] == 127).all(), "no offset is grey"


def test_the_check_lists_every_bad_file_and_counts_the_good_ones(tmp_path):
    """Three bad samples of five, for three reasons; exit code 2, no page, no traceback."""
    rng = np.random.default_rng(0)
    samples = {str(i): random_sample("ade20k", rng, 12, 20) for i in range(5)}
    root = write(tmp_path / "data", "ade20k", samples)
    save(place(root, "ade20k", 1, "0"), labels_with(151))
    save(place(root, "ade20k", 0, "2"), half(place(root, "ade20k", 0, "2").read_bytes()))
    save(place(root, "ade20k", 1, "4"), np.ones((9, 9), np.uint8))
    done = process("--dataset", "ade20k", "--data-path", root, "--output", tmp_path / "page.png")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "page.png").exists()
    lines = done.stderr.splitlines()
    assert len(lines) == 4 and "3 of 5 samples" in lines[3], done.stderr
    for line, which, name, why in zip(lines, (1, 0, 1), "024", ("[151]", "cannot be read", "9x9")):
        assert str(place(root, "ade20k", which, name)) in line and why in line, line
    maps = [samples[i][1].ravel() for i in "13"]
    assert {c: row[2] for c, row in table(done.stdout).items()} == {
        c: sum(c in m for m in maps) for c in np.unique(maps).tolist()}


def test_the_check_of_a_dataset_without_one_good_file(tmp_path, check):
    root, _ = good(tmp_path / "data", "cityscapes")
    for name in NAMES:
        save(place(root, "cityscapes", 0, name), b"")
    code, stdout, stderr = check("--dataset", "cityscapes", "--data-path", root, "--output", tmp_path / "page.png")
    assert code == 2 and "3 of 3 samples" in stderr and all(name in stderr for name in NAMES)
    assert "3 samples, 35 classes, 0 instances" in stdout


def test_the_check_as_a_process(tmp_path):
    """The page goes where the user asked for it, and its name is printed."""
    root, _ = good(tmp_path / "data", "official")
    done = process("--dataset", "coco_stuff", "--data-path", root, "--output", tmp_path / "page.png", "--rows", 1)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert str(tmp_path / "page.png") in done.stdout
    assert Image.open(tmp_path / "page.png").size == (4 * 256, 16 + 256), "one row, 256x256 by default"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["page.png"], "nothing else is left behind"


def test_a_missing_dataset_as_a_process(tmp_path):
    done = process("--dataset", "cityscapes", "--data-path", tmp_path / "nothing")
    assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout
    assert all(word in done.stderr for word in ARCHIVES["cityscapes"])


def test_the_speed_of_loading_as_a_process(tmp_path):
    """Samples a second, beside decoding alone, and their ratio."""
    root, _ = good(tmp_path / "data", "folder")
    done = process("--dataset", "folder", "--data-path", root, "--speed", 64, "--workers", 1, "--image-size", 32)
    assert done.returncode == 0, done.stderr
    whole, decoding, ratio = map(float, re.search(
        r"32x32, 1 workers: (\d+) training samples/s; decoding .* (\d+)/s; ratio ([\d.]+)", done.stdout).groups())
    assert whole > 0 and decoding > 0 and abs(ratio - whole / decoding) < 0.05 * ratio + 0.01


@pytest.mark.parametrize("options, says", [
    (["--dataset", "cats"], ["cats", "ade20k"]),
    (["--dataset", "folder"], ["--data-path DIR", "classes.txt"]),
    (["--image-size", "0"], ["--image-size", "256x512"]),
    (["--image-size", "64x"], ["--image-size", "256x512"]),
    (["--image-size", "64x64x64"], ["--image-size", "256x512"]),
    (["--image-size", "-64"], ["--image-size"]),
    (["--image-size", "big"], ["--image-size", "256x512"]),
    (["--split", "test"], ["--split", "train"]),
    (["--rows", "two"], ["--rows"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--speed", "0"], ["--speed", "16 or more"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--speed", "-1"], ["--speed", "16 or more"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--speed", "15"], ["--speed", "16 or more"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--speed", "16", "--workers", "0"], ["--speed", "one worker"]),
    (["--dataset", "toy", "--speed", "16"], ["--speed", "a dataset of files"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", "GOOD/none/page.png"], ["--output", "none", "exists"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", "GOOD"], ["--output", "PNG"]),
    (["--dataset", "folder", "--data-path", "GOOD", "--output", ""], ["--output", "PNG"])])
def test_options_that_do_not_fit_are_refused(tmp_path, check, options, says):
    """Exit code 2, and what to give instead, on stderr; no stack trace."""
    root, _ = good(tmp_path / "data", "folder")
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = check(*(option.replace("GOOD", str(root)) for option in options))
    assert code == 2 and not [word for word in says if word not in stderr], f"exit code {code}: {stderr}"
    assert sorted(tmp_path.rglob("*")) == before, "something was left behind"


# ------------------------------------------------------------------------------------------- real samples

@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name, folder, pattern", [
    ("ade20k", "ADEChallengeData2016", "annotations/{long}/*.png"), ("folder", "camvid", "labels/{split}/*.png"),
    ("cityscapes", "cityscapes", "gtFine/{split}/*/*_gtFine_labelIds.png"),
    ("coco_stuff", "coco_stuff", "{split}_label/*.png")])
def test_label_histograms_of_real_samples(name, folder, pattern, split):
    """survey() of the samples at hand against numpy's count of the same PNGs."""
    if not (REAL / folder).is_dir():
        pytest.skip("no real samples at hand")
    long = {"train": "training", "val": "validation"}[split]
    files = sorted((REAL / folder).glob(pattern.format(split=split, long=long)))
    dataset = open_dataset(name, REAL / folder, split, (64, 64))
    expected = np.zeros((len(files), 256), int)
    for i, file in enumerate(files):
        values, counts = np.unique(np.asarray(Image.open(file)), return_counts=True)
        expected[i, values] = counts
    last = len(dataset.classes) - 1
    if name in ("cityscapes", "coco_stuff"):
        expected[:, last] += expected[:, 255]
        expected[:, 255] = 0
    found = survey(dataset)
    assert len(files) == len(dataset) and not found["problems"] and expected.sum() == found["pixels"].sum()
    assert np.array_equal(found["pixels"], expected[:, :last + 1]), "other counts than in the files"
