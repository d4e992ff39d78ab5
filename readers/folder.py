"""Your own data, of any sizes, in the layout of TREE. With a palette.txt label maps may be in colours."""
from pathlib import Path

import numpy as np

from readers.files import Pictures, listed, match, not_there
from readers.images import IMAGE_ENDINGS
from support.errors import InputError, unfit
from support.pages import default_palette

TREE = """--dataset folder expects
  DIR/images/train/*.jpg   DIR/images/val/*.jpg    pictures (jpg or png)
  DIR/labels/train/*.png   DIR/labels/val/*.png    same names, 8-bit, value = class
  DIR/classes.txt                                  one class name a line, line number = value from 0;
                                                   a class named "unlabelled" is the unknown one
  DIR/palette.txt                                  only where label maps are coloured: "R G B" a line, as classes.txt
  DIR/instances/...                                optional, ids 1, 2, ...; 0 = no instance"""


def open_folder(path, split):
    """The pictures of a split, "train" or "val". Labels: the line numbers of classes.txt, from 0."""
    path = Path(path)
    if not (path / "classes.txt").is_file():
        raise not_there(f"{path}: no classes.txt there", path, TREE, ["labels"])
    classes = tuple(name.strip() for name in text_lines(path / "classes.txt"))
    if not all(classes) or len(classes) > 256:
        raise InputError(f"{path / 'classes.txt'}: expected 1 to 256 lines with a class name each, found "
                         f"{len(classes)} lines, {classes.count('')} of them empty")
    names = ["unlabelled" if name.lower() in ("unlabelled", "unlabeled") else name for name in classes]
    bad = next((c for c, name in enumerate(names) if name in names[:c] or unfit(name)), None)  # UTF-16 has \0
    if bad is not None:
        raise InputError(f"{path / 'classes.txt'}, line {bad + 1}: {classes[bad]!r} is there twice, has control "
                         f"characters or is no UTF-8; expected different names, at most one of them \"unlabelled\"")
    unknown = names.index("unlabelled") if "unlabelled" in names else None
    colours = read_palette(path / "palette.txt", classes) if (path / "palette.txt").exists() else None
    kinds = {"images": IMAGE_ENDINGS, "labels": (".png",), "instances": (".png",)}
    files = {path / kind / split: listed(path / kind / split, endings) for kind, endings in kinds.items()
             if kind != "instances" or (path / kind).is_dir()}
    palette = default_palette(len(classes), unknown) if colours is None else colours
    return Pictures(*match(files, path, TREE, ["labels"]), classes, palette, unknown, colours=colours, upright=True)


def text_lines(file):
    if not file.is_file():
        raise InputError(f"{file}: a folder, a pipe or a device; expected a text file")
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text; save it as UTF-8") from None


def read_palette(file, classes):
    """palette.txt: "R G B" a line, one for each line of classes.txt -> (C, 3) uint8. Raises InputError."""
    lines = [line.split() for line in text_lines(file)]
    bad = [n for n, line in enumerate(lines, 1)
           if len(line) != 3 or not all(v.isdecimal() and int(v) < 256 for v in line)]
    if bad or len(lines) != len(classes) or len({tuple(map(int, line)) for line in lines}) < len(lines):
        which = f", line {bad[0]} unlike that" if bad else ""
        raise InputError(f"{file}: expected {len(classes)} different lines of three numbers 0..255, R G B, one for "
                         f"each line of classes.txt; found {len(lines)} lines{which}")
    return np.array(lines).astype(np.uint8)
