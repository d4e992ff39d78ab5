"""Pictures from label maps, with an averaged generator (ema_*.pt) alone.

    python sample.py --checkpoint runs/toy/ema_0001000.pt --dataset toy --seeds 0-3
    python sample.py --checkpoint ema.pt --labels my_map.png --seeds 0-7
    python sample.py --checkpoint ema.pt --labels folder_of_maps/ --seeds 3,5 --interpolate 12
    python sample.py --checkpoint iidm_ema.pt --labels my_map.png --reference sunset.jpg winter.jpg     IIDM alone

Every seed is one z, drawn for itself: a picture depends on its label map and its seed (and with IIDM its reference),
not on the batch or the order. Pictures, the coloured label maps and a grid of both go to --output-dir.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from baselines import dpgan, iidm, oasis
from data import (DATASETS, IMAGE_ENDINGS, INSTANCE_RULES, InputError, classes_of_values, colour_labels, instance_ids,
                  listed, nearest, offset_maps, open_dataset, open_picture, parse_size, read_instances, read_labels)
from generator import Generator, to_pixels, z_of_seed

GENERATORS = {"dp-sims": Generator, "oasis": oasis.Generator, "dpgan": dpgan.Generator, "iidm": iidm.IIDM}
GRID_ROWS = 16  # label maps in the grid; the files of all of them are written


def load_generator(path, device="cpu", ensemble=None):
    """-> (generator in eval mode, checkpoint dict) of an EMA file that train.py wrote. Raises InputError.

    ensemble: a second file of the same IIDM run, to average with (IIDM Eq. 7).
    """
    checkpoints = []
    for file in filter(None, (ensemble, path)):
        if not Path(file).is_file():
            raise InputError(f"{file}: not there; give one of the ema_*.pt of a run folder")
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            G = GENERATORS[checkpoint.get("architecture", "dp-sims")](**checkpoint["generator"])
            G.load_state_dict(checkpoint["ema"])
        except Exception as error:  # torch raises many kinds for a damaged or foreign file
            raise InputError(f"{file}: not an EMA file of train.py ({type(error).__name__}); give one of the "
                             f"ema_*.pt of a run folder") from None
        checkpoints.append(checkpoint)
    if ensemble is not None:
        try:
            mean = iidm.average(*(c["ema"] for c in checkpoints))
            if any(checkpoints[0].get(key) != checkpoint.get(key) for key in ("run", "dataset", "classes")):
                raise ValueError("two runs")
            G.load_state_dict(mean)
        except ValueError as error:
            raise InputError(f"{path} and --ensemble {ensemble} are {error}; give two ema_*.pt of one run folder") from None
    return G.eval().requires_grad_(False).to(device, memory_format=torch.channels_last), checkpoint


def mix(z_a, z_b, t):
    """Spherical interpolation, t from 0 to 1: every step is as likely a draw of N(0, I) as its ends."""
    angle = torch.arccos(torch.nn.functional.cosine_similarity(z_a, z_b, dim=0).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * z_a + torch.sin(t * angle) * z_b) / torch.sin(angle)


@torch.no_grad()
def generate(G, label_map, offsets, z, device, amp=False):
    """label_map (B, H, W) integers, offsets (B, 2, H, W) or None, z (B, d_z) -> (B, H, W, 3) uint8 array."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
        image = G(label_map.to(device).long(), z.to(device), None if offsets is None else offsets.to(device))
    return to_pixels(image)


def generate_iidm(G, label_map, references, seeds, inference, device, amp=False, show=False):
    """label_map (B, H, W) integers, references (B, 3, H, W) or None, seeds [B] -> (B, H, W, 3) uint8 array."""
    references = None if references is None else references.to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
        image = iidm.generate(G, label_map.to(device).long(), references, seeds, inference, show)
    return to_pixels(image)


def parse_seeds(text):
    """"0-3,7" -> [0, 1, 2, 3, 7]."""
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or int(last or first) < int(first):
            raise argparse.ArgumentTypeError(f"{text}: expected seeds such as 0-7 or 0,3,5")
        if int(last or first) >= 2 ** 32:
            raise argparse.ArgumentTypeError(f"{text}: a seed has 32 bits; expected numbers below {2 ** 32}")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def names_of(args, size):
    """The names of the label maps that read_maps gives."""
    if args.dataset:
        names = open_dataset(args.dataset, args.data_path, args.split, size, instances=False).names
    else:
        names = sorted(file.stem for file in args.labels.glob("*.png")) if args.labels.is_dir() else [args.labels.stem]
    return names[:args.count or None]


def read_maps(args, checkpoint, size):
    """The label maps asked for, one by one: (name, label_map (H, W), offsets (2, H, W) or None) tensors."""
    offset_channels = checkpoint["generator"].get("offset_channels", 0)
    if args.dataset:
        dataset = open_dataset(args.dataset, args.data_path, args.split, size, instances=offset_channels > 0)
        if list(dataset.classes) != checkpoint["classes"] or 2 * dataset.has_instances != offset_channels:
            raise InputError(f"{args.checkpoint} was trained on {checkpoint['dataset']} with {len(checkpoint['classes'])} "
                             f"classes and {offset_channels} offset channels; --dataset {args.dataset} has "
                             f"{len(dataset.classes)} and {2 * dataset.has_instances}")
        for i in range(min(len(dataset), args.count or len(dataset))):
            sample = dataset[i]
            yield dataset.names[i], sample["label_map"], sample.get("offsets")
        return
    files = sorted(args.labels.glob("*.png")) if args.labels.is_dir() else [args.labels]
    if not files:
        raise InputError(f"{args.labels}: no label maps there; expected PNGs with class numbers")
    if args.instances and not offset_channels:
        raise InputError(f"{args.checkpoint} takes no instances; leave --instances out")
    if args.instances and args.labels.is_dir() != args.instances.is_dir():
        raise InputError("--labels and --instances: give two folders, or two PNGs")
    if offset_channels and not args.instances:
        print("this model takes instance offsets; without --instances every one of them is 0")
    H, W = size
    class_of = classes_of_values(checkpoint["dataset"], len(checkpoint["classes"]))
    colours = np.array(checkpoint["palette"], np.uint8)
    if len(np.unique(colours, axis=0)) < len(colours):
        colours = None  # a colour does not tell the class
    for file in files[:args.count or None]:
        labels = read_labels(file, class_of, colours)                                # (h, w)
        window = np.ix_(nearest(labels.shape[0], H), nearest(labels.shape[1], W))
        label_map = torch.from_numpy(labels[window])                                 # (H, W)
        offsets = torch.zeros(2, H, W) if offset_channels else None
        if args.instances:
            instance_file = args.instances / file.name if args.instances.is_dir() else args.instances
            instances = read_instances(instance_file)                                # (h, w)
            if instances.shape != labels.shape:
                raise InputError(f"{instance_file} is {instances.shape[1]}x{instances.shape[0]} but {file} is "
                                 f"{labels.shape[1]}x{labels.shape[0]}; the two must have the same size")
            instances = instance_ids(instances, labels, INSTANCE_RULES[checkpoint["dataset"]])
            offsets = torch.from_numpy(offset_maps(instances[window]))               # (2, H, W)
        yield file.stem, label_map, offsets


def read_reference(file, size):
    """A style reference at `size` (H, W): (3, H, W) in [-1, 1], and what was done to it or "". Raises InputError."""
    image, (H, W), notes = ImageOps.exif_transpose(open_picture(file)), size, []
    if image.mode[0] in "IF":
        raise InputError(f"{file}: a picture of mode {image.mode}; expected 8 bits a channel, convert it")
    if ("A" in image.getbands() or "transparency" in image.info) and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise InputError(f"{file}: has transparent pixels, whose colours are no style; put it on a background")
    if image.mode in ("1", "L", "LA"):
        notes.append(f"{file} is greyscale: a style without colours, which the pictures will follow")
    image = image.convert("RGB")
    if image.size != (W, H):
        notes.append(f"{file} is {image.height}x{image.width} (height x width), the pictures here {H}x{W}: resized, bicubic"
                     + ("" if image.width * H == image.height * W else ", and squeezed"))
        image = image.resize((W, H), Image.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1, "\n".join(notes)  # (3, H, W)


def open_references(reference, dataset, data_path, size, names):
    """--reference -> {its name: read(name of a label map, seed) -> (3, H, W) in [-1, 1]}. Raises InputError.

    reference: ["train"], a folder with a picture of each map's name, or files, each of them for every map. names: of the
    label maps. Says which references are brought to size or have no colours.
    """
    if not reference:
        raise InputError("IIDM starts from a style reference: give --reference with an image, a folder or train; or "
                         "--from-noise for the plain diffusion model")
    if reference == ["train"]:
        if dataset is None:
            raise InputError("--reference train needs --dataset; give an image or a folder of them")
        training = open_dataset(dataset, data_path, "train", size, instances=False)

        def of_training(name, seed):
            # PAPER: each test map has a reference from the training set, given by the challenge. / HERE: drawn at
            # random, from the map's name and the seed. / WHY: no dataset but the challenge's has such pairs.
            draw = np.random.default_rng((seed, *name.encode()))
            return training[int(draw.integers(len(training)))]["image"].float() / 127.5 - 1          # (3, H, W)
        return {"": of_training}
    files = [Path(file) for file in reference]
    for file in files:
        if not file.exists():
            raise InputError(f"--reference {file}: not there; expected an image, a folder of them, or train")
        if file.is_dir() and len(files) > 1:
            raise InputError(f"--reference {file}: a folder beside other references; expected one folder alone, or images")
    if files[0].is_dir():
        found = listed(files[0], IMAGE_ENDINGS)
        alone = [name for name in names if name not in found]
        if alone:
            raise InputError(f"--reference {files[0]}: {len(found)} pictures, none of them named {alone[0]}, as a label map is (of "
                             f"{len(names)} maps {len(alone)} have none); to draw every map in the style of some pictures, "
                             f"give the files")
        notes = list(filter(None, (read_reference(found[name], size)[1] for name in names)))  # and all can be read
        if notes:
            print(notes[0] + (f"\n(and {len(notes) - 1} more)" if len(notes) > 1 else ""))
        return {"": lambda name, seed: read_reference(found[name], size)[0]}
    styles = {}
    for file in files:
        if file.stem + "_" in styles:
            raise InputError(f"--reference {file}: two of them are called {file.stem}, and so would be their pictures; rename one")
        styles[file.stem + "_"], note = read_reference(file, size)
        if note:
            print(note)
    return {title: lambda name, seed, style=style: style for title, style in styles.items()}


def check_inference(args, checkpoint):
    """-> iidm.Inference of the options, or None for a GAN. Raises InputError for options that do not fit the checkpoint."""
    if checkpoint.get("architecture") != "iidm":
        given = ["reference"] * (args.reference is not None) + iidm.inference_options(args)
        if given:
            raise InputError(f"--{given[0].replace('_', '-')} is for checkpoints of --model iidm; {args.checkpoint} is not one")
        return None
    try:
        inference = iidm.inference_of(args)
    except ValueError as error:
        raise InputError(str(error)) from None
    if inference.guidance != 1 and not checkpoint["mask_dropout"]:
        raise InputError(f"--guidance {inference.guidance:g}: {args.checkpoint} was never shown a picture without its label "
                         f"map; train with --mask-dropout 0.2")
    return inference


def main():
    parser = argparse.ArgumentParser(description="Pictures from label maps.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="an ema_*.pt of a run folder")
    parser.add_argument("--labels", type=Path, help="one label map (PNG with class numbers) or a folder of them")
    parser.add_argument("--instances", type=Path, help="instance ids for --labels: a PNG, or a folder with the same names")
    parser.add_argument("--dataset", choices=DATASETS, help="instead of --labels: all maps of a dataset's split")
    parser.add_argument("--data-path")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--count", type=int, default=0, help="only the first so many maps; 0 = all")
    parser.add_argument("--seeds", type=parse_seeds, default="0", help="one picture per map and seed: 0-7, or 0,3,5")
    parser.add_argument("--interpolate", type=int, default=0, metavar="N",
                        help="N pictures from the first seed to the second, and a GIF of them")
    parser.add_argument("--reference", nargs="+", metavar="IMAGE_OR_FOLDER", help="for IIDM, the style: an image or several, "
                        "each for every label map; a folder with one image of each map's name; or train, training "
                        "pictures of --dataset at random")
    parser.add_argument("--image-size", type=parse_size, help="height x width to generate; default: as trained")
    parser.add_argument("--output-dir", type=Path, default="samples")
    parser.add_argument("--force", action="store_true", help="overwrite pictures of an earlier call")
    parser.add_argument("--batch-size", type=int, default=16, help="lower it if memory runs out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off")
    iidm.add_inference_options(parser)
    args = parser.parse_args()
    if bool(args.labels) == bool(args.dataset):
        raise InputError("give either --labels PNG_OR_FOLDER or --dataset NAME")
    if args.interpolate and (len(set(args.seeds)) != 2 or args.interpolate < 2):
        raise InputError("--interpolate N needs N of 2 or more and two different seeds, as in --seeds 3,5 --interpolate 12")
    if args.count < 0 or args.batch_size < 1:
        raise InputError("--count must be 0 or more, --batch-size 1 or more")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: this torch sees no CUDA device; use --device cpu")
    if args.labels and not args.labels.exists():
        raise InputError(f"{args.labels}: not there; expected a label map (PNG) or a folder of them")

    G, checkpoint = load_generator(args.checkpoint, args.device, args.ensemble)
    inference = check_inference(args, checkpoint)
    if inference is not None and inference.from_noise and args.reference:
        raise InputError("--from-noise takes no --reference; leave one of them out")
    if args.interpolate and inference is not None:
        raise InputError("--interpolate goes between two z of a GAN; IIDM has none")
    size = args.image_size or tuple(checkpoint["image_size"])
    if size[0] % G.downsampling or size[1] % G.downsampling:
        raise InputError(f"--image-size {size[0]}x{size[1]}: both sides must be divisible by {G.downsampling}")
    if args.interpolate:
        ends = [z_of_seed(seed, G.z_dim) for seed in args.seeds]
        a, b = args.seeds
        z = {f"mix{a:03d}-{b:03d}_{i:03d}": mix(*ends, i / (args.interpolate - 1)) for i in range(args.interpolate)}
    elif inference is None:
        z = {f"seed{seed:03d}": z_of_seed(seed, G.z_dim) for seed in args.seeds}
    else:
        references = {"": None} if inference.from_noise else open_references(args.reference, args.dataset, args.data_path, size,
                                                                             names_of(args, size))
        z = {f"{title}seed{seed:03d}": (read, seed) for title, read in references.items() for seed in args.seeds}
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {args.output_dir}: cannot be written ({error.strerror})") from None

    grid = []
    for name, label_map, offsets in tqdm(read_maps(args, checkpoint, size), desc="label maps", disable=None):
        files = [args.output_dir / f"{name}_{title}.png" for title in z]
        if not grid:
            files.append(args.output_dir / "grid.png")
        if not args.force and any(f.exists() for f in files):
            raise InputError(f"{next(f for f in files if f.exists())} is there already; choose another --output-dir, "
                             f"or --force to overwrite")
        pictures, shown = [], []
        for first in range(0, len(z), args.batch_size):
            some = list(z.values())[first:first + args.batch_size]
            n = len(some)
            if inference is None:
                made = generate(G, label_map.expand(n, -1, -1), None if offsets is None else offsets.expand(n, -1, -1, -1),
                                torch.stack(some), args.device, args.amp == "bf16")
                shown += list(made)
            else:
                styles = None if inference.from_noise else torch.stack([read(name, seed) for read, seed in some])
                made = generate_iidm(G, label_map.expand(n, -1, -1), styles, [seed for _, seed in some], inference,
                                     args.device, args.amp == "bf16", show=True)
                for style, picture in zip(made if styles is None else to_pixels(styles), made):
                    shown += [picture] if styles is None else [style, picture]
            pictures += list(made)
        coloured = colour_labels(label_map, np.array(checkpoint["palette"], np.uint8))
        Image.fromarray(coloured).save(args.output_dir / f"{name}_labels.png")
        for file, picture in zip(files, pictures):
            Image.fromarray(picture).save(file)
        if args.interpolate:
            frames = [Image.fromarray(p) for p in pictures + pictures[-2:0:-1]]  # there and back
            frames[0].save(args.output_dir / f"{name}_mix.gif", save_all=True, append_images=frames[1:], duration=80, loop=0)
        if len(grid) < GRID_ROWS:
            grid.append(np.concatenate([coloured, *shown], axis=1))  # with IIDM each reference before its picture
    zoom = max(1, round(128 / size[0]))  # small pictures are hard to look at
    grid = Image.fromarray(np.concatenate(grid))
    grid.resize((grid.width * zoom, grid.height * zoom), Image.NEAREST).save(args.output_dir / "grid.png")
    print(f"pictures: {args.output_dir}\ngrid:     {args.output_dir / 'grid.png'}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        print(f"sample.py: {error}", file=sys.stderr)
        sys.exit(2)
