"""Files that are whole or not there: checkpoints, JSON, and logs, of which a killed run leaves too many lines.

A checkpoint is checked once, here, when it is opened: its checksums, its entries and their types, every number in it.
Nothing that comes later has to ask again.
"""
import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from support.errors import InputError, unfit


def count(value):
    return type(value) is int and 0 <= value <= 10 ** 9


def byte(value):
    return count(value) and value < 256


def plain(value):
    return isinstance(value, str) and not unfit(value)


# Checkpoints of before it have no format, and are read as 0. It grows where an older code would misread a file.
FORMAT, NEWER = 1, "made by a later version of this code"
VERSIONS = {"format": FORMAT, "torch": str(torch.__version__)}
# What a file has: types or tests, [of each item], [of one item, of the next, ...], {of each name: of each value}.
STATE = {str: torch.Tensor}
LATEST = {"step": count, "identity": dict, "options": dict, "G": STATE, "D": STATE, "P": STATE, "ema": STATE,
          "optimiser_G": dict, "optimiser_D": dict}
AVERAGE = {"step": count, "generator": dict, "ema": STATE, "dataset": plain, "image_size": [count, count],
           "classes": [plain], "palette": [[byte, byte, byte]], "unknown": (int, type(None))}
LINE = {"step": count, "stage": (str, type(None)), str: (int, float)}  # of metrics.jsonl and scores.jsonl; IIDM's stage


def sha256_of(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def digest(text):
    """The sha256 of a text, which may have paths that are no UTF-8."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def write_atomically(path, write, previous=None):
    """write(binary file) beside `path`, then swap. A kill or a full disk at any moment leaves the old file whole.

    previous: where the old file is kept."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.is_file():
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)
            except OSError:  # a disk without links
                os.replace(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer puts an error of its own in its place
            raise error.__context__ from None
        raise InputError(f"{path}: cannot be written ({error}); the file of the last save, if any, is whole; "
                         f"make room or choose another --output-dir, and run the same command again") from None


def save_checkpoint(state, path, previous=None):
    write_atomically(path, lambda file: torch.save(state, file), previous)


def write_json(content, path):
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def read_json(file, form):
    """What a JSON file holds. Raises OSError, and ValueError for another form."""
    if not Path(file).is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{file}: No such file, or not a regular one")
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return require(found, form)


def read_arrays(file, key, forms):
    """{name: array} that write_arrays wrote under this key, or None. forms: {name: (shape, dtype)}. A damaged file is
    said: it is measured again."""
    if not Path(file).is_file():
        return None
    try:
        with np.load(file) as saved:
            if str(saved["key"]) != key:
                return None
            found = {name: saved[name] for name in forms}
        if all((a.shape, a.dtype) == (*forms[name],) and np.isfinite(a).all() for name, a in found.items()):
            return found
    except Exception:  # numpy raises many kinds for a damaged file
        pass
    print(f"{file}: damaged, measured again", file=sys.stderr)


def write_arrays(file, key, arrays):
    write_atomically(Path(file), lambda opened: np.savez(opened, key=key, **arrays))


def read_torch(file):
    """What torch.save wrote: plain types and finite tensors alone. Raises OSError where no file is there, ValueError
    for one that is damaged or something else."""
    if not Path(file).is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{file}: No such file, or not a regular one")
    try:
        if zipfile.is_zipfile(file):  # files of before torch 1.6 are none
            with zipfile.ZipFile(file) as archive:  # TRAP: torch does not look at the checksums
                damaged = archive.testzip() or next((  # it takes a length or the mark of a folder from the directory
                    part.filename for part in archive.infolist() if part.external_attr & 16
                    or not part.compress_type and part.compress_size != part.file_size), None)
            if damaged:
                raise ValueError(f"{damaged} in it is damaged")
        found = torch.load(file, map_location="cpu", weights_only=True)
        infinite = next((name for name, t in tensors_of(found, "") if not t.isfinite().all()), None)
        if infinite is not None:
            raise ValueError(f"{infinite} is not finite")
        return found
    except (OSError, ValueError):
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(type(error).__name__) from None


def is_whole(file, mine=None):
    """Whether a file that can be made again is whole, and like the state dict `mine`. A damaged one is said."""
    try:
        state = require(read_torch(file), STATE)
        require_like(state, mine or state, "it")
        return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        print(f"{file}: damaged ({error}), made again", file=sys.stderr)


def tensors_of(value, name):
    """(name, tensor) of all tensors in dicts, lists and tuples, such as "optimiser_G.state.0.exp_avg"."""
    if isinstance(value, torch.Tensor):
        yield name, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, inner in items:
        yield from tensors_of(inner, f"{name}.{key}".removeprefix("."))


def require_like(state, mine, name):
    """Raises ValueError where a state dict has other names, shapes or types than `mine`."""
    for key in sorted(state.keys() | mine.keys()):
        found, expected = (None if t is None else (*t.shape, t.dtype) for t in (state.get(key), mine.get(key)))
        if found != expected:
            raise ValueError(f"{name}.{key} is {found}, expected {expected}")


def require(value, form):
    """The value. Raises ValueError where it is not of a form such as LATEST."""
    wrong = unlike(value, form)
    if wrong is not None:
        raise ValueError(f"{wrong or 'all of it'} is not what it should be")
    return value


def unlike(value, form, name=""):
    """The name of what in `value` is not of a form such as LATEST, or None."""
    if isinstance(form, list):
        if not isinstance(value, list) or len(form) not in (1, len(value)):
            return name
        pairs = [(v, form[i % len(form)], f"{name}.{i}") for i, v in enumerate(value)]
    elif isinstance(form, dict):
        if not isinstance(value, dict) or str in form and not all(isinstance(key, str) for key in value):
            return name
        keys = [key for key in ({**form, **value} if str in form else form) if key is not str]
        pairs = [(value.get(key), form.get(key, form.get(str)), f"{name}.{key}".removeprefix(".")) for key in keys]
    else:
        fits = isinstance(value, form) if isinstance(form, (type, tuple)) else form(value)
        return None if fits else name
    return next((found for found in (unlike(*pair) for pair in pairs) if found is not None), None)


def read_checkpoint(path, form):
    """The dict of a checkpoint of a form. Raises OSError and ValueError as read_torch, also for another form."""
    state = read_torch(path)
    found = state.get("format", 0) if isinstance(state, dict) else 0
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(f"format {found}, {NEWER}, which reads up to {FORMAT}; update the code")
    return require(state, form)


def load_checkpoint(path):
    """latest.pt as a dict. Raises InputError where it is damaged, or a file of another kind."""
    try:
        return read_checkpoint(path, LATEST)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a checkpoint ({error}); move it away to start anew, or give "
                         f"another file") from None


def read_lines(path):
    """The dicts of a .jsonl file, up to a half-written one. A damaged line is left out, and said."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: a folder, a pipe or a device is in the way of the log; move it away")
    whole, found = path.read_bytes().splitlines(keepends=True) if path.is_file() else (), []
    for number, line in enumerate(whole, 1):
        try:
            found.append(require(json.loads(line), LINE))
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            if line.endswith(b"\n"):
                print(f"{path}: line {number} is damaged and left out", file=sys.stderr)
    return found


def append_line(path, line):
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def keep_steps_up_to(step, path):
    """Drop the lines of steps that a killed run logged after its last save, and a half-written one."""
    if path.exists():
        kept = "".join(json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step)
        write_atomically(path, lambda file: file.write(kept.encode()))
