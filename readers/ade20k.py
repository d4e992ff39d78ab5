"""ADE20K as ADEChallengeData2016 has it (Sec. 4.1): 150 classes and the unlabelled pixels, no instances.

    python -m readers.ade20k DIR data/ade20k_outdoor          its outdoor pictures (DP-GAN's Table 1), as links
    python train.py --dataset ade20k --data-path data/ade20k_outdoor
"""
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from readers.files import Pictures, listed, match
from readers.images import hex_colours, split_names
from support.errors import InputError, run_script
from support.options import new_parser

TREE = """--dataset ade20k expects
  DIR/images/training/*.jpg       DIR/images/validation/*.jpg         20,210 and 2,000 pictures
  DIR/annotations/training/*.png  DIR/annotations/validation/*.png    same names, 0 = unlabelled, 1..150
as ADEChallengeData2016.zip unpacks; from http://sceneparsing.csail.mit.edu"""
CLASSES = split_names("""unlabelled,
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, table,
mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat,
fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter,
sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen
door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, bannister,
escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag""")
PALETTE = hex_colours("""
000000 787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806
0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f
14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000
ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014
ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00
5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff
47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff""")

# The labels that are stuff to ADE20K's own instance and panoptic challenges. The other 100 classes are things.
STUFF = (1, 2, 3, 4, 5, 6, 7, 10, 12, 14, 17, 18, 22, 26, 27, 29, 30, 35, 41, 47, 49, 52, 53, 55, 60, 61, 62,
         64, 69, 78, 80, 85, 92, 95, 97, 100, 101, 102, 106, 107, 110, 114, 115, 118, 123, 129, 132, 141, 142,
         146)
OBJECTS = tuple(name for label, name in enumerate(CLASSES) if label not in (0, *STUFF))
# PAPER: ADE20K-outdoor "contains only outdoor scenes", 9,649 training and 943 validation images; no list of them is
# public. / HERE: the pictures with one of the first classes and none of the second. / WHY: OASIS's authors chose by
# these classes "like sky" and "like ceiling" (github.com/boschresearch/OASIS/issues/23), and then by eye.
OUTDOOR, INDOOR = {"sky", "mountain", "earth"}, {"ceiling", "bed", "sink"}


def open_ade20k(path, split):
    """The pictures of a split, "train" or "val". Labels: 0 = unlabelled, 1..150 = classes; 151 channels."""
    path, split = Path(path), {"train": "training", "val": "validation"}[split]
    files = {folder: listed(folder, (ending,)) for folder, ending in (
        (path / "images" / split, ".jpg"), (path / "annotations" / split, ".png"))}
    return Pictures(*match(files, path, TREE, ["annotations"]), CLASSES, PALETTE, unknown=0, objects=OBJECTS)


def is_outdoor(labels):
    """Whether a label map (h, w) is that of an outdoor scene, by OUTDOOR and INDOOR."""
    present = {CLASSES[label] for label in np.unique(labels)}
    return not present.isdisjoint(OUTDOOR) and present.isdisjoint(INDOOR)


def link_outdoor(path, output):
    """Links to the outdoor pictures of `path` and their label maps, in the same tree under `output`. -> {split: count}.

    Raises InputError where `output` holds files already.
    """
    path, output, counts = Path(path).resolve(), Path(output), {}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: is there already; choose another folder, or remove it")
    splits = {split: open_ade20k(path, split) for split in ("train", "val")}
    for split, pictures in splits.items():
        chosen = [i for i in tqdm(range(len(pictures.names)), desc=split, disable=None)
                  if is_outdoor(pictures.labels(i))]
        counts[split] = len(chosen)
        for file in (file for i in chosen for file in pictures.files[i][:2]):
            link = output / file.relative_to(path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    return counts


def main(argv):
    parser = new_parser("Choose the outdoor pictures of ADE20K, and link them into a folder of their own.")
    parser.add_argument("path", type=Path, help="ADEChallengeData2016")
    parser.add_argument("output", type=Path, help="the new folder")
    args = parser.parse_args(argv)
    counts = link_outdoor(args.path, args.output)
    print(f"{args.output}: {counts['train']} training and {counts['val']} validation pictures (DP-GAN's paper: 9649 "
          f"and 943)")


if __name__ == "__main__":
    run_script("readers.ade20k", lambda: main(sys.argv[1:]))
