"""Files that are whole or not there: checkpoints, JSON, and logs, of which a killed run leaves too many lines."""
import hashlib
import json
import os
from pathlib import Path

import torch

from support.errors import InputError


def sha256_of(file):
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def write_atomically(path, write):
    """write(binary file) beside `path`, then swap. A kill or a full disk at any moment leaves the old file whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error}); the file of the last save, if any, is whole; "
                         f"make room or choose another --output-dir, and run the same command again") from None


def save_checkpoint(state, path):
    write_atomically(path, lambda file: torch.save(state, file))


def write_json(content, path):
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


def load_checkpoint(path):
    """A checkpoint's dict, plain types and tensors only. Raises InputError where it cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"step", "identity", "options"} <= state.keys():
            raise ValueError("another kind of file")
        return state
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}); move it away to "
                         f"start anew, or give another file") from None


def read_lines(path):
    """The dicts of a .jsonl file, up to a half-written one."""
    whole = path.read_text().splitlines(keepends=True) if path.is_file() else ()
    return [json.loads(line) for line in whole if line.endswith("\n")]


def append_line(path, line):
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def keep_steps_up_to(step, path):
    """Drop the lines of steps that a killed run logged after its last save, and a half-written one."""
    if path.is_file():
        kept = "".join(json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= step)
        write_atomically(path, lambda file: file.write(kept.encode()))
