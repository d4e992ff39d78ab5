"""Pictures from label maps, with an averaged generator (ema_*.pt) alone: G(z, t) in one forward pass.

    python sample.py --checkpoint runs/toy/ema_0001600.pt --dataset toy --seeds 0-3
    python sample.py --checkpoint ema.pt --labels my_map.png --seeds 0-7
    python sample.py --checkpoint ema.pt --labels folder_of_maps/ --seeds 3,5 --interpolate 12
    python sample.py --checkpoint ema.pt --labels my_map.png --seeds 0-7 --region-seeds sky=3,car#2=7
    python sample.py --checkpoint ema.pt --export generator.onnx

Each seed gives one z. A picture depends on its label map and its seeds alone, but for rounding: not on the order.
Pictures, the coloured label maps and a grid of both go to --output-dir.

    load_generator     a checkpoint -> the generator
    generate           label maps, offsets and z -> pictures
    mix                interpolation between two z
    read_maps          label maps of a dataset or of your own
    region_map         where the regions of --region-seeds lie (docs/regions.md)
"""
import argparse
import difflib
import itertools
import re
import sys
from pathlib import Path

import support  # noqa: F401, before torch, which takes seconds
import numpy as np
import torch
from PIL import Image
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from tqdm import tqdm

from data import DATASETS, MEANINGS, nearest, offset_maps, open_dataset
from generator import Generator, z_of_seed
from readers.files import listed, require_size
from readers.images import Meaning, classes_of_values, read_instances, read_labels
from support.checkpoints import AVERAGE, read_checkpoint, write_atomically
from support.errors import InputError, run_script, unfit
from support.export import export
from support.options import AT_LEAST_0, MOST_DRAWN, add_drawing_options, check_sides, new_parser, number, seeds, size
from support.pages import colour_labels, draw_rows, legend_of, save_picture, to_pixels
from support.ranks import setup_ranks

GENERATORS = {"dp-sims": Generator}
GRID_ROWS, GRID_COLUMNS = 16, 64  # label maps, and pictures of each, in the grid; all have their own files
# For scores. PAPER: z of the samples is not said. / HERE: z of map i under seed s comes from torch seed
# s * 1,000,003 + i. / WHY: any batch, rank or restart draws the same. TRAP: torch uses 32 bits of a seed alone.
SEED_STRIDE, MOST_SEEDS = 1_000_003, 4000


def load_generator(path, device="cpu", generators=GENERATORS):
    """-> (generator in eval mode, checkpoint dict) of an EMA file that train.py wrote. Raises InputError.

    generators: {name of an architecture: its class}.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: {'a folder' if Path(path).is_dir() else 'not there'}; give one of the ema_*.pt of a "
                         f"run folder")
    try:
        checkpoint = read_checkpoint(path, AVERAGE)
        architecture = checkpoint.get("architecture", "dp-sims")
        if architecture in generators:
            G, C = generators[architecture](**checkpoint["generator"]), checkpoint["generator"]["num_classes"]
            G.load_state_dict(checkpoint["ema"])
            names, colours, unknown = len(checkpoint["classes"]), len(checkpoint["palette"]), checkpoint.get("unknown")
            if not C == names == colours or unknown not in (None, *range(C)):
                raise ValueError(f"{C} classes, {names} names, {colours} colours, unlabelled class {unknown}")
    except Exception as error:  # options and weights that do not fit raise many kinds
        raise InputError(f"{path}: not an EMA file of train.py ({' '.join(str(error).split())[:160]}); give one "
                         f"of the ema_*.pt of a run folder") from None
    if architecture not in generators:
        raise InputError(f"{path}: a generator of {architecture}; those of dp-sims are for sample.py and evaluate.py, "
                         f"the others for python -m baselines.sample, baselines.evaluate and baselines.iidm.sample")
    G = fold_spectral_norms(G.eval()).requires_grad_(False)
    return G.to(device, memory_format=torch.channels_last), checkpoint


def fold_spectral_norms(G):
    """G, in eval mode, with its quotients W / sigma computed once, not in every picture."""
    for module in G.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight", leave_parametrized=True)
    return G


@torch.no_grad()
def generate(G, label_map, offsets, z, device, amp=False, regions=None):
    """label_map (B, H, W) integers, offsets (B, 2, H, W) or None, z (B, d_z) -> (B, H, W, 3) uint8 array.

    regions (B, H, W) int64 of 0..R-1: then z is (B, R, d_z), one for each region.
    """
    offsets, regions = (t if t is None else t.to(device) for t in (offsets, regions))
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
        image = G(label_map.to(device).long(), z.to(device), offsets, regions=regions)
    return to_pixels(image)


def conditions(samples):
    """Samples of a dataset -> label_map (B, H, W), offsets (B, 2, H, W) or None."""
    label_map = torch.stack([s["label_map"] for s in samples])
    return label_map, torch.stack([s["offsets"] for s in samples]) if "offsets" in samples[0] else None


def noise(maps, seed, z_dim):
    """(B, d_z): z of the maps with these numbers under one seed, for scores."""
    return torch.stack([z_of_seed(seed * SEED_STRIDE + i, z_dim) for i in maps])


def mix(z_a, z_b, t):
    """Spherical interpolation, t from 0 to 1: each z on the way is of the length of a draw of N(0, I)."""
    angle = torch.arccos(torch.nn.functional.cosine_similarity(z_a, z_b, dim=0).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * z_a + torch.sin(t * angle) * z_b) / torch.sin(angle)


# --------------------------------------------------------------------------------------------- label maps

def open_fitting(checkpoint, name, path, split, image_size):
    """open_dataset, for the generator of a checkpoint. Raises InputError where classes or offsets do not fit it."""
    offset_channels = checkpoint["generator"].get("offset_channels", 0)
    dataset = open_dataset(name, path, split, image_size, instances=offset_channels > 0)
    pairs = itertools.zip_longest(checkpoint["classes"], dataset.classes, fillvalue="no class")
    c, (trained, here) = next((pair for pair in enumerate(pairs) if pair[1][0] != pair[1][1]), (0, ("", "")))
    if trained != here:
        raise InputError(f"--dataset {name}: class {c} is {here}, in the checkpoint it is {trained}, trained on "
                         f"{checkpoint['dataset']}; expected the same classes in the same order")
    if offset_channels and not dataset.has_instances:
        raise InputError(f"--dataset {name}: no instances; the checkpoint was trained with their offsets")
    return dataset


def read_maps(args, checkpoint, image_size):
    """The label maps asked for: their names, and one by one (label_map (H, W), offsets (2, H, W) or None) tensors."""
    if args.dataset:
        dataset = open_fitting(checkpoint, args.dataset, args.data_path, args.split, image_size)
        samples = map(dataset.__getitem__, range(args.count or len(dataset)))
        return dataset.names[:args.count or None], ((s["label_map"], s.get("offsets")) for s in samples)
    files = files_of(args.labels)[:args.count or None]
    return [file.stem for file in files], read_files(files, args, checkpoint, image_size)


def read_files(files, args, checkpoint, image_size):
    """read_maps of PNGs."""
    has_offsets, (H, W) = checkpoint["generator"].get("offset_channels", 0) > 0, image_size
    if args.instances and not has_offsets:
        raise InputError(f"{args.checkpoint} takes no instances; leave --instances out")
    if args.instances and args.labels.is_dir() != args.instances.is_dir():
        raise InputError("--labels and --instances: give two folders, or two PNGs")
    if has_offsets and not args.instances:
        print("this model takes instance offsets; without --instances every one of them is 0")
    meaning, class_of, colours = how_to_read(checkpoint)
    of_name, said = listed(args.instances, (".png",)) if args.instances and args.instances.is_dir() else {}, False
    for file in files:
        labels = read_labels(file, class_of, colours)                                # (h, w)
        if labels.shape != (H, W) and not said:
            said = tqdm.write(f"{file}: {labels.shape[0]}x{labels.shape[1]} (height x width); label maps are resized "
                              f"to {H}x{W}, nearest (see --image-size)") or True
        window = np.ix_(nearest(labels.shape[0], H), nearest(labels.shape[1], W))
        offsets = torch.zeros(2, H, W) if has_offsets else None
        if args.instances:
            instance_file = of_name.get(file.stem, args.instances / file.name if of_name else args.instances)
            instances = read_instances(instance_file)                                # (h, w)
            require_size(instances, instance_file, labels, file)
            instances = meaning.ids(instances, labels, instance_file)
            offsets = torch.from_numpy(offset_maps(instances[window]))               # (2, H, W)
        yield torch.from_numpy(labels[window]), offsets


def how_to_read(checkpoint):
    """A label map of one's own for this generator -> the Meaning of its files, class_of and the colours of
    read_labels, None where two classes share one."""
    meaning, colours = MEANINGS.get(checkpoint["dataset"], Meaning()), np.array(checkpoint["palette"], np.uint8)
    class_of = classes_of_values(len(checkpoint["classes"]), meaning.last_is_255)
    return meaning, class_of, colours if len(np.unique(colours, axis=0)) == len(colours) else None


def files_of(path):
    """--labels: a PNG or a folder of them. Raises InputError."""
    files = list(listed(path, (".png",)).values()) if path.is_dir() else [path]
    if not files or not files[0].exists() or unfit(path.name):
        what = ("no PNG in this folder" if path.is_dir() else "a name with control characters" if unfit(path.name)
                else "not there")
        raise InputError(f"--labels {path}: {what}; expected a label map (PNG with class numbers) or a folder of them")
    return files


# ------------------------------------------------------------------------------------------------ regions

def region_seeds(text):
    """"car=7,car#2=3" -> [("car", 7), ("car#2", 3)]."""
    pairs = re.findall(r"([^=]+)=(\d+)(?:,|$)", text)
    if ",".join("=".join(pair) for pair in pairs) != text:
        raise argparse.ArgumentTypeError(f"{text}: expected classes and seeds such as sky=3,car=7 or car#2=7")
    return [(name, seeds(seed)[0]) for name, seed in pairs]


def find_region(name, checkpoint):
    """"car" -> (its class, 0); "car#2" -> (its class, 2). Raises InputError."""
    classes = checkpoint["classes"]
    if name in classes:
        return classes.index(name), 0
    kind, _, number = name.rpartition("#")
    if kind not in classes or not number.isdecimal() or not int(number):
        nearest_names = ", ".join(difflib.get_close_matches(kind or name, classes, 5, 0))
        raise InputError(f"--region-seeds {name}: no class of this checkpoint, and no instance such as "
                         f"{classes[0]}#1; the nearest of its {len(classes)} classes: {nearest_names}")
    if not checkpoint["generator"].get("offset_channels", 0):
        raise InputError(f"--region-seeds {name}: this model knows no instances; give the class, {kind}=SEED")
    return classes.index(kind), int(number)


def instances_of(inside, offsets):
    """[(H, W) bool, ...] from left to right: the instances among the pixels `inside` (H, W) bool of one class, which
    are those whose offsets (2, H, W) point to one centre."""
    size = torch.tensor(inside.shape)[:, None, None]
    place = torch.stack(torch.meshgrid(*map(torch.arange, inside.shape), indexing="ij"))  # (2, H, W)
    centre, found, rest = place + offsets.double() * size, [], inside & offsets.any(dim=0)
    while rest.any():
        y, x = centre[:, rest][:, 0]
        here = inside & ((centre[0] - y).abs() < 0.05) & ((centre[1] - x).abs() < 0.05)
        rest = rest & ~here
        found.append((x, here))
    return [here for _, here in sorted(found, key=lambda pair: pair[0])]


def region_map(label_map, offsets, wanted):
    """(H, W) int64: i + 1 where region wanted[i] lies, a (class, instance or 0), else 0. The later one wins."""
    regions = torch.zeros(label_map.shape, dtype=torch.long)
    for i, (label, number) in enumerate(wanted, 1):
        here = label_map == label                                                    # (H, W)
        if number:
            here = dict(enumerate(instances_of(here, offsets), 1)).get(number, torch.zeros_like(here))
        regions[here] = i
    return regions


# ------------------------------------------------------------------------------------------------- main

def make_parser(description):
    """The options of every script that draws pictures from label maps; `check` goes over them."""
    parser = new_parser(description)
    parser.add_argument("--checkpoint", required=True, help="an ema_*.pt of a run folder")
    parser.add_argument("--labels", type=Path, help="one label map (PNG with class numbers) or a folder of them")
    parser.add_argument("--instances", type=Path, help="instance ids for --labels: a PNG, or a folder")
    parser.add_argument("--dataset", choices=DATASETS, help="instead of --labels: all maps of a dataset's split")
    parser.add_argument("--data-path")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--count", type=AT_LEAST_0, default=0, help="only the first so many maps; 0 = all")
    parser.add_argument("--seeds", type=seeds, default="0", help="one picture per map and seed: 0-7, or 0,3,5")
    parser.add_argument("--image-size", type=size, help="height x width to generate; default: as trained")
    parser.add_argument("--output-dir", type=Path, default="samples")
    parser.add_argument("--force", action="store_true", help="overwrite pictures of an earlier call")
    add_drawing_options(parser)
    return parser


def check(args):
    """args, where its options fit together, and a folder to write to. Raises InputError."""
    if bool(args.labels) == bool(args.dataset):
        raise InputError("give either --labels PNG_OR_FOLDER or --dataset NAME")
    if args.instances and args.dataset or args.data_path and args.labels:
        raise InputError("--instances goes with --labels, --data-path with --dataset; leave it out")
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {args.output_dir}: cannot be written ({error.strerror})") from None
    return args


def refuse_to_overwrite(files, force):
    """Raises InputError where one of `files` is there and `force` does not allow to write over it, or is a folder."""
    there = [file for file in files if file.is_dir() or file.exists() and not force]
    if there:
        raise InputError(f"{there[0]} is there already; choose another --output-dir, or "
                         + ("move this folder away" if there[0].is_dir() else "--force to overwrite"))


def write_grid(rows, titles, checkpoint, folder):
    """rows [(label map, [(H, W, 3) uint8, ...]), ...] -> grid.png of the pictures, with titles and a legend."""
    legend = legend_of([label_map for label_map, _ in rows], checkpoint["classes"], checkpoint["palette"])
    draw_rows([("", pictures) for _, pictures in rows], folder / "grid.png", titles, legend, height=128, gap=0)
    print(f"pictures: {folder}\ngrid:     {folder / 'grid.png'}")


def main(argv, generators=GENERATORS):
    parser = make_parser("Pictures from label maps.")
    parser.add_argument("--interpolate", type=number(0, MOST_DRAWN), default=0, metavar="N",
                        help="N pictures from the first seed to the second, and a GIF of them")
    parser.add_argument("--region-seeds", type=region_seeds, default=[], metavar="NAME=SEED,...",
                        help="other seeds for some classes, or instances counted from the left: sky=3,car#2=7")
    parser.add_argument("--export", type=Path, metavar="FILE", help="no pictures: the generator itself as FILE.pt2 "
                        "(torch.export) or FILE.onnx, float32, on the CPU (docs/export.md)")
    args = parser.parse_args(argv)
    if args.export:
        if args.labels or args.dataset or args.instances or args.interpolate or args.region_seeds:
            raise InputError("--export writes the generator and no picture; leave --labels, --dataset, --instances, "
                             "--interpolate and --region-seeds out")
        export(*load_generator(args.checkpoint, "cpu", generators), args.export, args.force)
        return
    check(args)
    if args.interpolate and (len(set(args.seeds)) != 2 or args.interpolate < 2):
        raise InputError("--interpolate N needs N of 2 or more and two different seeds: --seeds 3,5 --interpolate 12")
    device = setup_ranks(args.device).device
    G, checkpoint = load_generator(args.checkpoint, device, generators)
    image_size = args.image_size or tuple(checkpoint["image_size"])
    check_sides(image_size, G.downsampling, padding=G.first.padding_mode)
    z = {f"seed{seed:03d}": z_of_seed(seed, G.z_dim) for seed in args.seeds}
    if args.interpolate:
        (a, b), ends, steps = args.seeds, z.values(), args.interpolate - 1
        z = {f"mix{a:03d}-{b:03d}_{i:03d}": mix(*ends, i / steps) for i in range(steps + 1)}
    wanted = [find_region(name, checkpoint) for name, _ in args.region_seeds]
    z_of_regions = [z_of_seed(seed, G.z_dim) for _, seed in args.region_seeds]
    palette, grid = np.array(checkpoint["palette"], np.uint8), []
    titles = ["labels.png", *(f"{title}.png" for title in z), *["mix.gif"] * bool(args.interpolate)]
    names, planes = read_maps(args, checkpoint, image_size)
    refuse_to_overwrite([args.output_dir / "grid.png", *(
        args.output_dir / f"{name}_{title}" for name in names for title in titles)], args.force)
    for name, (label_map, offsets) in tqdm(zip(names, planes), desc="label maps", disable=None):
        files = [args.output_dir / f"{name}_{title}.png" for title in z]
        pictures, regions = [], region_map(label_map, offsets, wanted) if wanted else None
        for i, (region, seed) in enumerate(args.region_seeds, 1):
            if not (regions == i).any():
                tqdm.write(f"{name}: {region}={seed} changes nothing, for no pixel is (or is left to) {region}")
        for some in torch.stack(list(z.values())).split(args.batch_size):
            maps, ways, where = (t if t is None else t.expand(len(some), *t.shape)
                                 for t in (label_map, offsets, regions))
            if wanted:
                some = torch.stack([some, *(t.expand(len(some), -1) for t in z_of_regions)], dim=1)  # (n, R, d_z)
            pictures += list(generate(G, maps, ways, some, device, args.amp == "bf16", where))
        coloured = colour_labels(label_map, palette)                                 # (H, W, 3)
        for file, picture in zip([args.output_dir / f"{name}_labels.png", *files], [coloured, *pictures]):
            save_picture(picture, file)
        if args.interpolate:
            first, *others = (Image.fromarray(p) for p in pictures + pictures[-2:0:-1])  # there and back
            write_atomically(args.output_dir / f"{name}_mix.gif", lambda file: first.save(
                file, format="GIF", save_all=True, append_images=others, duration=80, loop=0))
        if len(grid) < GRID_ROWS:
            grid.append((label_map, [coloured, *pictures[:GRID_COLUMNS]]))
    write_grid(grid, ["label map", *z], checkpoint, args.output_dir)


if __name__ == "__main__":
    run_script("sample.py", lambda: main(sys.argv[1:]))
