"""Datasets of files: what every reader of files returns (Pictures), and how files are found and paired."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from readers.images import Meaning, classes_of_values, read_instances, read_labels, read_rgb
from support.errors import InputError, unfit


@dataclass(eq=False)
class Pictures:
    """A dataset as it lies on disk: pictures of any sizes, their label maps, and what tells instances apart.

    Raises InputError, when a sample is read, for files that cannot be read, sizes that differ, and strange labels.
    """
    files: list                   # [(picture, label map, instance map or None), ...]
    names: list                   # of the samples
    classes: tuple                # C names
    palette: np.ndarray           # (C, 3) uint8, for pages
    unknown: int | None           # the class of unlabelled pixels
    meaning: Meaning = Meaning()  # of the values in the files
    colours: np.ndarray = None    # (C, 3) uint8 where label maps may be RGB, see images.read_labels
    outlines: object = None       # coco_stuff.Outlines in place of instance maps
    score_ids: np.ndarray = None  # (C,) the id under which the benchmark scores each class, -1 = not scored
    objects: tuple = ()           # names of the classes that obj-mIoU is over
    cropped: bool = True          # training pictures are cropped and flipped; False: only flipped
    upright: bool = False         # see images.read_rgb

    def __post_init__(self):
        self.has_instances = self.outlines is not None or self.files[0][2] is not None
        self.class_of = classes_of_values(len(self.classes), self.meaning.last_is_255)
        if self.score_ids is None:
            self.score_ids = np.array([-1 if c == self.unknown else c for c in range(len(self.classes))])

    def load(self, index, instances=True):
        """Sample `index`: (h, w, 3) uint8, (h, w) uint8 classes, (h, w) ids, 0 = none.

        The ids are None where the dataset has none, or where instances=False leaves their files unread.
        """
        image_file, label_file, instance_file = self.files[index]
        image, labels = read_rgb(image_file, self.upright), self.labels(index)
        require_size(labels, label_file, image, image_file)
        if not (instances and self.has_instances):
            return image, labels, None
        if self.outlines is not None:
            return image, labels, self.outlines.paint(index, labels, image_file)
        ids = read_instances(instance_file)
        require_size(ids, instance_file, image, image_file)
        return image, labels, self.meaning.ids(ids, labels, instance_file)

    def labels(self, index):
        """(h, w) uint8 classes of sample `index`, at the size of its file."""
        return read_labels(self.files[index][1], self.class_of, self.colours)

    def fingerprint(self):
        """A text that changes with the list of files, their sizes and times. Raises InputError for a dead link."""
        colours = repr(None if self.colours is None else self.colours.tolist())
        return "\n".join([colours, *stamps(file for files in self.files for file in files[:2])])


def stamps(files):
    """A text for each file that changes with it: its path, size and time. Raises InputError for a dead link."""
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); replace or remove it") from None
        yield f"{file} {stat.st_size} {stat.st_mtime_ns}"


def require_size(plane, file, image, image_file):
    """InputError where a label or instance map (h, w) has not the size of `image` (h, w, ...)."""
    if plane.shape != image.shape[:2]:
        raise InputError(f"{file} is {plane.shape[1]}x{plane.shape[0]} but {image_file} is "
                         f"{image.shape[1]}x{image.shape[0]}; the two must have the same size")


def match(files, path, tree, marks):
    """{folder: {name: file}} of one split -> [(picture, label map, instance map or None), ...], sorted names.

    path, tree, marks: for not_there. Raises InputError where there are no files, or where a name has no partner.
    """
    for n, (folder, found) in enumerate(files.items()):
        if not found:
            raise not_there(f"{folder}: no {'label or instance maps' if n else 'pictures'} there", path, tree, marks)
    for here in files:
        for there in files:
            alone = sorted(files[here].keys() - files[there].keys())
            if alone:
                some = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
                raise InputError(f"{files[here][alone[0]]}: no file of that name in {there} ({len(alone)} such files: "
                                 f"{some}); add its partner or remove it")
    names = sorted(next(iter(files.values())))
    return [(*(of[name] for of in files.values()), None)[:3] for name in names], names


def listed(folder, endings, suffix=""):
    """{name: file} of a folder, the names without `suffix` and ending, hidden files left out.

    Raises InputError for two files of one name, and for a name that no terminal can show."""
    files = {}
    for file in sorted(folder.glob("*")):
        name = file.stem.removesuffix(suffix)
        if file.suffix.lower() not in endings or not file.stem.endswith(suffix) or file.name.startswith("."):
            continue
        if unfit(name):
            raise InputError(f"{file}: its name has control characters, or is no UTF-8; rename it")
        if name in files:
            raise InputError(f"{file}: {files[name].name} has the same name; remove one of them")
        files[name] = file
    return files


def not_there(what, path, tree, marks):
    """The InputError for files that are missing under `path`.

    what: the folder, and what it lacks. tree: the expected layout, as text. marks: folders that only such a dataset
    has; a folder inside of `path` that has one of them is proposed instead.
    """
    inside = [folder for folder in (sorted(Path(path).glob("*/")) if Path(path).is_dir() else ())
              if any((folder / mark).is_dir() for mark in marks)]
    hint = f"; {inside[0]} looks like it: give --data-path {inside[0]}" if inside else ""
    return InputError(f"{what}{hint}. {tree}")
