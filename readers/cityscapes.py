"""Cityscapes, finely labelled (Sec. 4.1): the 34 label ids and the licence plate, instances."""
from pathlib import Path

import numpy as np

from readers.files import Pictures, listed, match
from readers.images import Meaning, hex_colours, split_names
from support.errors import InputError

TREE = """--dataset cityscapes expects
  DIR/leftImg8bit/{train,val}/CITY/*_leftImg8bit.png                  2,975 and 500 pictures
  DIR/gtFine/{train,val}/CITY/*_gtFine_labelIds.png                   0..33, 255 = license plate
  DIR/gtFine/{train,val}/CITY/*_gtFine_instanceIds.png
as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack; from https://www.cityscapes-dataset.com"""
CLASSES, _palette = zip(*(entry.rsplit(" ", 1) for entry in split_names("""
unlabeled 000000, ego vehicle 000000, rectification border 000000, out of roi 000000, static 000000, dynamic 6f4a00,
ground 510051, road 804080, sidewalk f423e8, parking faaaa0, rail track e6968c, building 464646, wall 66669c, fence
be9999, guard rail b4a5b4, bridge 966464, tunnel 96785a, pole 999999, polegroup 999999, traffic light faaa1e, traffic
sign dcdc00, vegetation 6b8e23, terrain 98fb98, sky 4682b4, person dc143c, rider ff0000, car 00008e, truck 000046, bus
003c64, caravan 00005a, trailer 00006e, train 005064, motorcycle 0000e6, bicycle 770b20, license plate 00008e""")))
PALETTE = hex_colours(" ".join(_palette))
# The 19 classes that are scored, in the order of their train ids. All others are not, nor is the licence plate.
SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
OBJECTS = CLASSES[17:21] + CLASSES[24:34]  # "the object, human, and vehicle group of Cityscapes" (DP-GAN's Table 2)


def instance_ids(instances, labels, file):
    """Instances have labelId * 1000 + n; crowds and stuff have the plain labelId, here 0."""
    if instances.dtype == np.uint8:
        raise InputError(f"{file}: an 8-bit file; expected Cityscapes' 16-bit ids, which 8 bits clip")
    return np.where(instances >= 1000, instances, 0)


MEANING = Meaning(last_is_255=True, ids=instance_ids)  # the licence plate is -1, 255 as 8 bits


def open_cityscapes(path, split):
    """The pictures of a split, "train" or "val". Labels: 0..33, 255 = licence plate; 35 channels.

    PAPER: 256x512, silent on crops. / HERE: resized, not cropped. / WHY: OASIS's protocol.
    """
    path, files = Path(path), {}
    for folder, suffix in (("leftImg8bit", "_leftImg8bit"), ("gtFine", "_gtFine_labelIds"),
                           ("gtFine", "_gtFine_instanceIds")):
        of_suffix = files[path / folder / split / "*" / f"*{suffix}.png"] = {}
        for city in sorted((path / folder / split).glob("*/")):
            for name, file in listed(city, (".png",), suffix).items():
                if of_suffix.setdefault(name, file) != file:
                    raise InputError(f"{file}: {of_suffix[name]} has the same name; remove one of them")
    score_ids = np.full(len(CLASSES), -1)
    score_ids[list(SCORED)] = np.arange(len(SCORED))
    return Pictures(*match(files, path, TREE, ["gtFine"]), CLASSES, PALETTE, unknown=0, meaning=MEANING,
                    score_ids=score_ids, objects=OBJECTS, cropped=False)
