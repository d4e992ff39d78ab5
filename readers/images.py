"""How pictures, label maps and instance maps are read from their files, for every reader and `sample.py --labels`.

TRAP: labels must arrive as they were written. So nothing here resizes or interpolates, and a file whose values are no
classes is refused with an InputError that names the file and the values.
"""
import errno
import os
import time
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from support.errors import HANDLES, InputError
from support.pages import seal

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PICTURES, MAPS = ("PNG", "JPEG", "WEBP", "BMP"), ("PNG", "BMP")  # by content; PIL would hand PostScript to Ghostscript
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR)  # of network disks, tried again


def as_they_are(instances, labels, file):
    return instances


class Meaning(NamedTuple):
    """What the values in a dataset's files mean, where they are not classes 0, 1, ... and ids 1, 2, ..."""
    last_is_255: bool = False   # 255, and no other value, is the last class
    # (instance map (h, w), labels (h, w), file of the former) -> (h, w) ids, 0 = no instance
    ids: Callable = as_they_are


def hex_colours(text, dtype=np.uint8):
    """"804080 f423e8" -> (2, 3), 0..255."""
    return np.array([tuple(bytes.fromhex(colour)) for colour in text.split()], dtype)


def split_names(text):
    """"wall, sky" -> ("wall", "sky"); line breaks count as spaces."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def classes_of_values(num_classes, last_is_255):
    """The class of each value in a dataset's label files: (256,) int16, -1 = none."""
    class_of = np.full(256, -1, np.int16)
    class_of[:num_classes] = np.arange(num_classes)
    if last_is_255:
        class_of[[num_classes - 1, 255]] = -1, num_classes - 1
    return class_of


def open_picture(file, formats=PICTURES, upright=False, tries=3, header=False):
    """A PIL image, read to its end, or its header alone. upright: see read_rgb. Raises InputError."""
    try:
        if isinstance(file, (str, Path)) and os.path.lexists(file) and not Path(file).is_file():  # as a pipe that waits
            raise ValueError("a folder, a pipe, a device, or a link to nowhere")
        header or require_checksums(file, formats)
        with Image.open(file, formats=formats) as image:
            if header:
                return image
            image.info["scaled"] = bool(image.tile) and image.tile[0][3] in ("L;2", "L;4")  # a grey PNG of 2 or 4 bits
            image.load()  # a truncated file fails here, not later
            return ImageOps.exif_transpose(image) if upright else image
    except UnidentifiedImageError:
        lossy = "; JPEG and WebP change the values of a label or instance map" if formats == MAPS else ""
        raise InputError(f"{file}: cannot be read as a picture: it is none of {', '.join(formats)}{lossy}; replace or "
                         f"remove it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if tries > 1 and isinstance(error, OSError) and error.errno in PASSING:
            time.sleep(0.5)
            return open_picture(file, formats, upright, tries - 1, header)
        remedy = HANDLES if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) else "replace or remove it"
        raise InputError(f"{file}: cannot be read as a picture ({error}); {remedy}") from None


def require_checksums(file, formats):
    """Raises SyntaxError for a PNG that is damaged. TRAP: `load` does not look at the checksums of its pixels."""
    with Image.open(file, formats=formats) as image:
        if image.format == "PNG":
            image.verify()
    if hasattr(file, "seek"):  # a file in memory is read once more
        file.seek(0)


def read_rgb(file, upright=False, sealed=None):
    """(h, w, 3) uint8 of a picture of 8 bits a channel: RGB, greyscale, CMYK, palette. Raises InputError.

    upright: turn it as its camera's rotation flag says. TRAP: the benchmarks' label maps follow the stored pixels;
    people who draw their own follow what a viewer shows them.
    sealed: the text with which pages.save_picture sealed it.
    """
    image = open_picture(file, upright=upright)
    if image.mode[0] in "IF":
        raise InputError(f"{file}: a picture of mode {image.mode}; expected 8 bits a channel, convert it")
    picture = np.asarray(image.convert("RGB"))
    if sealed is not None and image.info.get("seal") != seal(picture, file, sealed):
        raise InputError(f"{file}: not the picture that was drawn there; remove it, and it is drawn again")
    return picture


def read_labels(file, class_of, colours=None):
    """A label map (h, w) uint8 with a class at each pixel. Raises InputError for values or colours that are no class.

    class_of: see classes_of_values. Palette PNGs count by their indices.
    colours: (C, 3) uint8, where the file may be RGB instead; palette PNGs then count by their colours.
    """
    image = open_picture(file, MAPS)
    if image.info["scaled"]:
        raise InputError(f"{file}: a greyscale PNG of 2 or 4 bits, whose values are spread to 0..255 in reading; save "
                         f"it with 8 bits")
    if colours is not None and image.mode in ("RGB", "P"):
        return classes_of_colours(np.asarray(image.convert("RGB")), colours, file)
    if image.mode not in ("L", "P", "I;16", "I", "1"):
        if image.mode == "RGB":
            refuse_grey(np.asarray(image), class_of.max() + 1, file)
        hint = ", or say in palette.txt which colour is which class" if image.mode == "RGB" else ""
        raise InputError(f"{file}: a label map must have one channel with class numbers, this one is {image.mode}; "
                         f"save it as an 8-bit greyscale or palette PNG{hint}")
    values = np.asarray(image)
    seen = np.flatnonzero(image.histogram()) if image.mode in "LP" else np.unique(values).astype(np.int64)
    strange = [int(v) for v in seen if not (0 <= v < 256 and class_of[v] >= 0)]
    if strange:
        known = np.flatnonzero(class_of >= 0)
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        ranges = ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
        raise InputError(f"{file}: label values {strange[:16]} are no class, expected {ranges} ({class_of.max() + 1} "
                         f"classes are known); correct the label map or the class list")
    values = values.astype(np.uint8)
    return values if (class_of[seen] == seen).all() else class_of.astype(np.uint8)[values]


def refuse_grey(image, num_classes, file):
    """Raises InputError for class numbers that were saved in three channels: image (h, w, 3) uint8."""
    if image.max() < num_classes and (image == image[..., :1]).all():
        raise InputError(f"{file}: a label map must have one channel with class numbers, this one has them three times "
                         f"(RGB); save it as an 8-bit greyscale PNG")


def classes_of_colours(image, colours, file):
    """image (h, w, 3) uint8, colours (C, 3) uint8 -> (h, w) uint8, the class of each colour. Raises InputError."""
    pixels, codes = (t.astype(np.int32) @ (65536, 256, 1) for t in (image, colours))     # (h, w), (C,)
    order = np.argsort(codes)
    place = order[np.searchsorted(codes[order], pixels).clip(max=len(codes) - 1)]        # (h, w)
    strange = np.unique(pixels[codes[place] != pixels])
    if len(strange):
        refuse_grey(image, len(colours), file)
        raise InputError(f"{file}: colours {[(c >> 16, c >> 8 & 255, c & 255) for c in strange[:8].tolist()]} "
                         f"({len(strange)} in all) are no class's colour; expected class numbers 0..{len(colours) - 1} "
                         f"in an 8-bit greyscale PNG, or the classes' colours without smoothing or JPEG compression; "
                         f"where the dataset has a palette.txt, add them to it before training")
    return place.astype(np.uint8)


def read_instances(file):
    """An instance map (h, w) with its values as they are, 8 or 16 bits. Raises InputError."""
    image = open_picture(file, MAPS)
    if len(image.getbands()) > 1 or image.mode == "F":
        raise InputError(f"{file}: an instance map must have one channel with ids, this one is {image.mode}; "
                         f"save it as an 8-bit or 16-bit greyscale PNG")
    return np.asarray(image)
