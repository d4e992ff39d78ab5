"""Folders of pictures to score: the generated ones, by seed, and real ones."""
import re

from readers.files import listed
from readers.images import IMAGE_ENDINGS, open_picture
from support.errors import InputError


def open_seeds(folder):
    """--fake DIR -> ([{name: file} of the first seed, of the second, ...], (H, W) of all). Raises InputError.

    Files are named NAME.png, NAME_seed000.png as sample.py does, or seed000/NAME.png as evaluate.py does.
    """
    parts = sorted(part for part in folder.glob("seed[0-9]*") if part.is_dir()) or [folder]
    found, sizes = zip(*(open_pictures(part, "--fake") for part in parts))
    if len(set(sizes)) > 1:
        raise InputError(f"--fake {folder}: pictures of {len(set(sizes))} sizes; bring all to one size")
    if len(parts) > 1:
        return list(found), sizes[0]
    seeds = {}
    for name, file in found[0].items():
        name, _, seed = name.rpartition("_seed") if re.fullmatch(r".+_seed\d+", name) else (name, "", "0")
        if seeds.setdefault(int(seed), {}).setdefault(name, file) is not file:
            raise InputError(f"--fake {folder}: {file.name} and {seeds[int(seed)][name].name} are both {name} under "
                             f"seed {int(seed)}; leave one out")
    return [seeds[seed] for seed in sorted(seeds)], sizes[0]


def open_pictures(folder, flag, resize=None):
    """--fake or --real DIR -> ({name: file}, (H, W) of them all, or `resize`). Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{flag} {folder}: no such folder; expected a folder of pictures")
    files, sizes = listed(folder, IMAGE_ENDINGS), {}
    drawn = {name.rpartition("_seed")[0] for name in files if re.fullmatch(r".+_seed\d+", name)}
    for name in ("grid", *(f"{name}_labels" for name in drawn)) if drawn else ():  # of sample.py, and no pictures
        files.pop(name, None)
    if len(files) < 2:
        raise InputError(f"{flag} {folder}: {len(files)} pictures ({', '.join(IMAGE_ENDINGS)}) there; expected 2 or "
                         f"more, a covariance needs them")
    for file in files.values():
        sizes.setdefault(open_picture(file, header=True).size[::-1], file)
    if resize is None and len(sizes) > 1:
        some = " and ".join(f"{file.name} {h}x{w}" for (h, w), file in list(sizes.items())[:2])
        hint = ", or give --image-size to have the real ones resized" if flag == "--real" else ""
        raise InputError(f"{flag} {folder}: pictures of {len(sizes)} sizes (height x width), {some}; bring all to one "
                         f"size{hint}")
    return files, resize or next(iter(sizes))
