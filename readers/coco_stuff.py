"""COCO-Stuff (Sec. 4.1), in SPADE's layout or the official one: 182 classes and the unlabelled pixels, instances."""
import json
from pathlib import Path

import numpy as np

from readers.files import Pictures, listed, match, not_there
from readers.images import Meaning, split_names
from support.errors import InputError
from support.pages import default_palette

TREE = """--dataset coco_stuff expects
  DIR/train_img/*.jpg  DIR/train_label/*.png  DIR/train_inst/*.png    SPADE's layout, and the same with val_; or
  DIR/{train,val}2017/*.jpg                                           118,287 and 5,000 pictures
  DIR/stuffthingmaps/{train,val}2017/*.png                            same names, 0..181, 255 = unlabelled
  DIR/annotations/instances_{train,val}2017.json
as train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org and
stuffthingmaps_trainval2017.zip from https://github.com/nightrome/cocostuff unpack"""
MARKS = ("stuffthingmaps", "train_img", "val_img")
THINGS = 91         # classes 0..90 are things, of which 11 occur nowhere, 91..181 are stuff
CLASSES = split_names("""
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign, stop
sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack, umbrella,
shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove,
skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana, apple,
sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, mirror, dining table,
window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink,
refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush, banner, blanket,
branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes,
clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone,
floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house,
leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other,
skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree,
vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
waterdrops, window-blind, window-other, wood, unlabelled""")


def instance_ids(instances, labels, file):
    """SPADE's instance maps: 0, 1, 2, ... written into a copy of the label map, so an id may equal a label.

    TRAP: id 0 is the first instance, stuff keeps its label, and so do things outside of every outline (crowds).
    """
    return np.where(labels < THINGS, 1 + 2 * instances.astype(np.int32) + (instances == labels), 0)


MEANING = Meaning(last_is_255=True, ids=instance_ids)


def open_coco_stuff(path, split):
    """The pictures of a split, "train" or "val". Labels: 0..181, 255 = unlabelled; 183 channels."""
    path, year = Path(path), f"{split}2017"
    pictures = first_of(path, f"{split}_img", year, f"images/{year}")
    labels = first_of(path, f"{split}_label", f"stuffthingmaps/{year}", f"stuffthingmaps_trainval2017/{year}")
    instances, outlines = path / f"{split}_inst", None
    files = {pictures: listed(pictures, (".jpg",)), labels: listed(labels, (".png",))}
    if instances.is_dir():
        files[instances] = listed(instances, (".png",))
    matched, names = match(files, path, TREE, MARKS)
    if not instances.is_dir():
        file = first_of(path, f"annotations/instances_{year}.json", f"instances_{year}.json")
        if not file.is_file():
            raise not_there(f"{path}: neither {split}_inst/ nor annotations/instances_{year}.json, which say where an "
                            f"instance ends", path, TREE, MARKS)
        try:
            outlines = Outlines(json.loads(file.read_bytes()), names)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{file}: cannot be read as COCO's instances ({type(error).__name__}: {error}); expected "
                             f"it from annotations_trainval2017.zip, and pictures named by their ids") from None
    return Pictures(matched, names, CLASSES, default_palette(183, 182), unknown=182, meaning=MEANING, outlines=outlines,
                    objects=CLASSES[:THINGS])


def first_of(root, *places):
    """The first of the places that is there, or the first."""
    return next((root / place for place in places if (root / place).exists()), root / places[0])


class Outlines:
    """The instances of the pictures `names`, in flat arrays, which loader processes share.

    numbers  (n,) float32: outlines (x, y, x, y, ...) and the run lengths of crowds, one after the other
    parts    (P, 4): of each of these its class, whether it is a crowd, its instance, and where it ends in `numbers`
    first    (N + 1,): picture i has parts first[i] .. first[i + 1]: crowds, then large before small, which end on top
    sizes    (N, 2): (h, w) of the pictures
    """

    def __init__(self, content, names):
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        strange = [name for name in names if int(name) not in sizes]
        if strange:
            raise ValueError(f"it does not know {len(strange)} of the {len(names)} pictures, such as {strange[0]}; "
                             f"expected the file of the same split")
        instances, numbers, parts, first = {}, [np.empty(0, np.float32)], [], [0]
        for a in content["annotations"]:
            instances.setdefault(a["image_id"], []).append(a)
        for name in names:
            in_order = sorted(instances.get(int(name), ()), key=lambda a: (not a["iscrowd"], -a["area"]))
            for number, a in enumerate(in_order, 1):
                crowd = bool(a["iscrowd"])
                for part in [a["segmentation"]["counts"]] if crowd else a["segmentation"]:
                    numbers.append(as_numbers(part, crowd))
                    parts.append((a["category_id"] - 1, crowd, number, len(part)))
            first.append(len(parts))
        self.numbers, self.parts = np.concatenate(numbers), np.array(parts, np.int64).reshape(-1, 4)
        self.parts[:, 3] = self.parts[:, 3].cumsum()
        self.first, self.sizes = np.array(first), np.array([sizes[int(name)] for name in names])

    def paint(self, index, labels, file):
        """(h, w) int32 instance ids of picture `index`, 0 = none, where the label map (h, w) has the instance's class.

        PAPER: no rule for pixels that several outlines claim. / HERE: the label map decides between classes, the
        smaller instance within one. / WHY: label map and offsets then never contradict each other.
        """
        h, w = labels.shape
        if (h, w) != tuple(self.sizes[index]):
            raise InputError(f"{file} is {w}x{h}, but its instances are for {self.sizes[index][1]}x"
                             f"{self.sizes[index][0]}; pictures and label maps must have their original size")
        painted = np.zeros((h, w), np.int32)
        for p in range(self.first[index], self.first[index + 1]):
            label, crowd, number, end = self.parts[p]
            numbers = self.numbers[self.parts[p - 1, 3] if p else 0:end]
            if not crowd:
                window, inside = fill_outline(numbers.reshape(-1, 2), h, w)
            elif numbers.sum() == h * w:                              # runs out, in, out, ... down the columns
                runs = np.repeat(np.arange(len(numbers)) % 2 == 1, numbers.astype(int))                # (w h,)
                window, inside = np.s_[:, :], runs.reshape(w, h).T                                     # (h, w)
            else:
                raise InputError(f"{file} is {w}x{h}, {h * w} pixels, but a crowd among its instances has "
                                 f"{int(numbers.sum())}; the picture must have its original size")
            painted[window][inside & (labels[window] == label)] = number
        return painted


def as_numbers(part, crowd):
    """An outline (x, y, x, y, ...), or a crowd's run lengths, as (n,) float32. Raises ValueError for anything else."""
    numbers = np.array(part, np.float32)
    fits = numbers.ndim == 1 and np.isfinite(numbers).all() and (
        all(type(n) is int and n >= 0 for n in part) if crowd else len(part) >= 6 and len(part) % 2 == 0)
    if not fits:
        raise ValueError("an instance is neither outlines (x, y, x, y, ...) nor plain run lengths")
    return numbers


def fill_outline(points, h, w):
    """Pixels whose middle lies inside of a closed outline (n, 2) of x and y, by the even-odd rule, in an h x w picture
    -> (window of the picture, (rows, columns) bool in it)."""
    left, top = np.floor(points.min(axis=0)).clip(0, (w, h)).astype(int)
    right, bottom = np.ceil(points.max(axis=0)).clip(0, (w, h)).astype(int)
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    middle = np.arange(top, bottom)[:, None] + 0.5                                                     # (rows, 1)
    row, edge = np.nonzero((y0 > middle) != (y1 > middle))            # where a row's middle line crosses an edge
    x = x0[edge] + (middle[row, 0] - y0[edge]) / (y1[edge] - y0[edge]) * (x1[edge] - x0[edge])
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(crossings, (row, np.ceil(x - 0.5).clip(left, right).astype(int) - left), 1)
    return np.s_[top:bottom, left:right], crossings.cumsum(axis=1)[:, :-1] % 2 == 1
