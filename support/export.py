"""A generator as one file that needs none of this code: `sample.py --export FILE.pt2` (torch.export) or FILE.onnx.

    in    label_map  (B, H, W) int64, 0..C-1; H and W divisible by size_multiple, and at least twice as large
          z          (B, d_z) float32, a draw of N(0, I)
          offsets    (B, 2, H, W) float32, only where the generator takes them
    out   image      (B, 3, H, W) float32 in [-1, 1]

Class names, palette and all else that a user of the file has to know are in its metadata (docs/export.md). Nothing is
written before its picture has been compared with the generator's.
"""
import io
import json
import statistics

import torch

from support.checkpoints import write_atomically
from support.errors import InputError
from support.profile import seconds_of

TOLERANCE, TIMED = 1e-4, 5  # largest difference of a pixel in [-1, 1]; pictures whose median time is told
INPUTS = ("label_map", "z", "offsets")


def metadata_of(G, checkpoint):
    """{name: text}, every value as JSON."""
    known = {name: checkpoint[name] for name in ("dataset", "classes", "palette", "unknown", "image_size", "step")}
    return {name: json.dumps(value) for name, value in {
        "architecture": checkpoint.get("architecture", "dp-sims"), **known, "size_multiple": G.downsampling,
        "z_dim": G.z_dim, "offset_channels": G.offset_channels}.items()}


def random_inputs(G, batch, height, width):
    """label_map (B, H, W), z (B, d_z) and, where G takes them, offsets (B, 2, H, W)."""
    random = torch.Generator().manual_seed(0)
    label_map = torch.randint(G.num_classes, (batch, height, width), generator=random)
    z = torch.randn(batch, G.z_dim, generator=random)
    offsets = torch.rand(batch, 2, height, width, generator=random) - 0.5
    return (label_map, z, offsets) if G.offset_channels else (label_map, z)


def traced(G):
    """G in eval mode, on the CPU -> its torch.export program, for every batch and every size that G allows."""
    batch = torch.export.Dim("batch", min=1)
    # TRAP: with min=1 the lowest scale could be 1 pixel wide; torch.export and reflected borders need 2
    height, width = (G.downsampling * torch.export.Dim(name, min=2) for name in ("rows", "columns"))
    inputs = random_inputs(G, 3, 4 * G.downsampling, 6 * G.downsampling)
    shapes = {0: batch, 1: height, 2: width}, {0: batch}, {0: batch, 2: height, 3: width}
    return torch.export.export(G, inputs, dynamic_shapes=dict(zip(INPUTS, shapes[:len(inputs)])))


def as_pt2(program, metadata):
    """-> the file's bytes, and a function from its inputs to its picture."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


def as_onnx(program, metadata):
    """As as_pt2. Raises ImportError."""
    import onnxruntime
    model = torch.onnx.export(program, dynamo=True, verbose=False, output_names=["image"]).model_proto
    for name, text in metadata.items():
        model.metadata_props.add(key=name, value=text)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    return content, lambda *inputs: torch.from_numpy(
        session.run(None, {name: tensor.numpy() for name, tensor in zip(INPUTS, inputs)})[0])


KINDS = {".pt2": as_pt2, ".onnx": as_onnx}


def seconds(draw, inputs):
    """The median time of one call, after one that warms up."""
    return statistics.median([seconds_of(lambda: draw(*inputs), inputs[0].device) for _ in range(TIMED + 1)][1:])


@torch.no_grad()
def export(G, checkpoint, path, force):
    """Writes generator G, in eval mode on the CPU, to `path`; says what it takes, how near it is and how fast.

    Raises InputError: another ending, a file that is there, a package that is not, a picture that differs.
    """
    if path.suffix not in KINDS:
        raise InputError(f"--export {path}: expected a file that ends in {' or '.join(KINDS)}")
    if path.exists() and not force:
        raise InputError(f"{path} is there already; choose another name, or --force to overwrite")
    if not path.parent.is_dir():
        raise InputError(f"--export {path}: there is no folder {path.parent}; make it first")
    try:
        content, draw = KINDS[path.suffix](traced(G), metadata_of(G, checkpoint))
    except ImportError as error:
        raise InputError(f"--export {path}: ONNX needs further packages ({error}); pip install onnx onnxscript "
                         f"onnxruntime, or export to a .pt2") from None
    inputs = random_inputs(G, 1, *(max(side, 2 * G.downsampling) for side in checkpoint["image_size"]))
    apart = (draw(*inputs) - G(*inputs)).abs().max().item()
    if not apart <= TOLERANCE:
        raise InputError(f"--export {path}: its picture differs from sample.py's by {apart:.1e}, expected at most "
                         f"{TOLERANCE:.0e}; nothing was written; try another version of torch")
    write_atomically(path, lambda file: file.write(content))
    print(f"{path}: {len(content) / 2 ** 20:.1f} MiB, {', '.join(INPUTS[:len(inputs)])} -> image; any batch, sides "
          f"divisible by {G.downsampling}, from {2 * G.downsampling} on\nlargest difference from sample.py's picture "
          f"{apart:.1e}; {1000 * seconds(draw, inputs):.1f} ms a picture, without export "
          f"{1000 * seconds(G, inputs):.1f} ms ({TIMED} of {'x'.join(map(str, checkpoint['image_size']))}, the median)")
