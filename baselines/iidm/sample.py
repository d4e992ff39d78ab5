"""Pictures from label maps in the style of references, with a checkpoint of IIDM (Algorithm 2).

    python -m baselines.iidm.sample --checkpoint EMA --dataset toy --count 8 --reference train
    python -m baselines.iidm.sample --checkpoint EMA --labels my_map.png --reference sunset.jpg winter.jpg
    python -m baselines.iidm.sample --checkpoint EMA --dataset toy --for-scores --output-dir DIR

--for-scores makes the folder that evaluate.py --fake and baselines.iidm.scores read: one picture a map, NAME.png, with
its reference as references/NAME.png. The same command again goes on where it stopped.
"""
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from baselines.iidm import diffusion
from baselines.iidm.diffusion import ROUNDS, START, STEPS, Inference, average
from baselines.iidm.networks import IIDM
from data import open_dataset
from evaluate import claim_pictures
from readers.files import listed
from readers.images import IMAGE_ENDINGS, open_picture, read_rgb
from sample import (GRID_ROWS, SEED_STRIDE, check, load_generator, make_parser, read_maps, refuse_to_overwrite,
                    write_grid)
from support.checkpoints import sha256_of
from support.errors import InputError, run_script
from support.options import AT_LEAST_0, check_sides, number
from support.pages import colour_labels, save_picture, to_pixels
from support.ranks import batches, leave_ranks, setup_ranks

# The rows of IIDM's Table 2: options of this command, over one training. --ensemble wants a second checkpoint.
TABLE_2 = {
    "iidm-table2-dm": "--from-noise",
    "iidm-table2-i2i": "--rounds 1",
    "iidm-table2-rf": "--colour-transfer off",
    "iidm-table2-ct": "",
    "iidm-table2-me": "--ensemble",
}


def load_model(path, ensemble, device):
    """-> (IIDM in eval mode, checkpoint dict) of an EMA file. Raises InputError.

    ensemble: a second file of the same run, to average with (IIDM Eq. 7), or None.
    """
    model, checkpoint = load_generator(path, device, {"iidm": IIDM})
    if ensemble is not None:
        other = load_generator(ensemble, "cpu", {"iidm": IIDM})[1]
        try:
            model.load_state_dict(average(checkpoint["ema"], other["ema"]))
            if any(checkpoint.get(key) != other.get(key) for key in ("run", "dataset", "classes")):
                raise ValueError("two runs")
        except ValueError as error:
            raise InputError(f"{path} and --ensemble {ensemble} are {error}; give two ema_*.pt of one run") from None
    return model, checkpoint


def draw(model, label_map, references, seeds, inference, device, amp=False, show=False):
    """label_map (B, H, W) integers, references (B, 3, H, W) or None, seeds [B] -> (B, H, W, 3) uint8 array."""
    references = None if references is None else references.to(device)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
        return to_pixels(diffusion.generate(model, label_map.to(device).long(), references, seeds, inference, show))


# ------------------------------------------------------------------------------------------- references

def read_reference(file, size):
    """A style reference, resized to `size` (H, W): (3, H, W) in [-1, 1]. Raises InputError."""
    image = open_picture(file)
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    if has_alpha and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise InputError(f"{file}: has transparent pixels, whose colours are no style; put it on a background")
    picture = Image.fromarray(read_rgb(file, upright=True)).resize(size[::-1], Image.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1                   # (3, H, W)


def open_references(args, size, names):
    """--reference, for label maps of these names -> {title: read(name, seed) -> (3, H, W)}. Raises InputError."""
    if args.reference == ["train"]:
        if args.dataset is None:
            raise InputError("--reference train needs --dataset; give an image or a folder of them")
        training = open_dataset(args.dataset, args.data_path, "train", size, instances=False)

        def of_training(name, seed):
            # PAPER: each test map has a reference from the training set, given by the challenge. / HERE: drawn at
            # random, from the map's name and the seed. / WHY: no dataset but the challenge's has such pairs.
            random = np.random.default_rng((seed, *name.encode()))
            return training[int(random.integers(len(training)))]["image"].float() / 127.5 - 1         # (3, H, W)
        return {"": of_training}
    files = [Path(file) for file in args.reference]
    for file in files:
        if not file.exists() or file.is_dir() and len(files) > 1:
            raise InputError(f"--reference {file}: {'a folder beside others' if file.exists() else 'not there'}; "
                             f"expected images, one folder of them, or train")
    if files[0].is_dir():
        found = listed(files[0], IMAGE_ENDINGS)
        alone = [name for name in names if name not in found]
        if alone:
            raise InputError(f"--reference {files[0]}: no picture named {alone[0]}, as a label map is ({len(alone)} of "
                             f"{len(names)} maps have none); to draw every map in one style, give a file")
        return {"": lambda name, seed: read_reference(found[name], size)}
    styles = {f"{file.stem}_": read_reference(file, size) for file in files}
    if len(styles) < len(files):
        raise InputError("--reference: two of them have one name, and so would their pictures; rename one")
    return {title: lambda name, seed, style=style: style for title, style in styles.items()}


# ---------------------------------------------------------------------------------------------- options

def levels(text):
    """"320" or "600,640,400" -> noise levels, one for all rounds or one for each."""
    return tuple(number(1, STEPS)(part) for part in text.split(","))


def parse_options(argv):
    """argv -> argparse.Namespace, with .inference. Raises InputError."""
    parser = make_parser("Pictures from label maps in the style of references, by denoising.")
    parser.add_argument("--reference", nargs="+", metavar="IMAGE_OR_FOLDER", help="the style: an image or several, "
                        "each for every label map; a folder with one image of each map's name; or train, training "
                        "pictures of --dataset at random (default with --for-scores)")
    parser.add_argument("--for-scores", action="store_true", help="one picture a map, NAME.png, for evaluate.py --fake")
    group = parser.add_argument_group("inference (Algorithm 2)")
    group.add_argument("--start", type=levels, metavar="T", help=f"noise level from which the reference is denoised, 1 "
                       f"to {STEPS}; or one for each round: 600,640,400; default: {START}")
    group.add_argument("--rounds", type=number(1, 100), metavar="K", help=f"1 is I2I in Table 2; default: {ROUNDS}")
    group.add_argument("--colour-transfer", choices=("on", "off"), help="between the rounds; default: on")
    group.add_argument("--from-noise", action="store_true", help="the plain diffusion model (DM in Table 2)")
    group.add_argument("--ddim-steps", type=AT_LEAST_0, default=0, metavar="N", help="N steps of DDIM a round; 0: "
                       "every step of IIDM Eq. 5")
    group.add_argument("--guidance", type=number(0, 100, float), default=1.0, metavar="S", help="classifier-free "
                       "guidance, for models trained with --mask-dropout; 1: none")
    group.add_argument("--ensemble", type=Path, metavar="EMA_FILE", help="of the same run (IIDM Eq. 7)")
    args = check(parser.parse_args(argv))
    args.inference = inference_of(args)
    if args.for_scores:
        args.reference = args.reference or ["train"]  # S compares with it, whether it is looked at or not
    elif bool(args.reference) == args.from_noise:
        raise InputError("IIDM starts from a style reference: give --reference with an image, a folder or train; or "
                         "--from-noise alone for the plain diffusion model")
    return args


def inference_of(args):
    """The options of Algorithm 2 -> Inference. Raises InputError where they do not fit together."""
    if args.from_noise and (args.start or args.rounds or args.colour_transfer):
        raise InputError("--from-noise has one round from t = 1000; leave --start, --rounds and --colour-transfer out")
    start = args.start or (START,)
    rounds = args.rounds or (ROUNDS if len(start) == 1 else len(start))
    if len(start) not in (1, rounds):
        raise InputError(f"--rounds {rounds}, but --start has {len(start)} numbers; give one, or one for each round")
    most = STEPS if args.from_noise else min(start)
    if args.ddim_steps > most:
        raise InputError(f"--ddim-steps {args.ddim_steps}: expected 0 to {most}; there are no more steps from there")
    return Inference(start * rounds if len(start) == 1 else start, args.from_noise, args.colour_transfer != "off",
                     args.ddim_steps, args.guidance)


# ------------------------------------------------------------------------------------------------- main

def write_samples(model, maps, styles, checkpoint, args, device):
    """Every map in each style under each seed; and a grid of the first maps, each picture after its reference."""
    wanted, grid = [(title, read, seed) for title, read in styles.items() for seed in args.seeds], []
    palette, heads = np.array(checkpoint["palette"], np.uint8), ["label map"]
    titles = ["labels.png", *(f"{title}seed{seed:03d}.png" for title, _, seed in wanted)]
    refuse_to_overwrite([args.output_dir / "grid.png", *(
        args.output_dir / f"{name}_{title}" for name, _, _ in maps for title in titles)], args.force)
    for name, label_map, _ in tqdm(maps, desc="label maps", disable=None):
        files = [args.output_dir / f"{name}_{title}seed{seed:03d}.png" for title, _, seed in wanted]
        shown = [colour_labels(label_map, palette)]
        save_picture(shown[0], args.output_dir / f"{name}_labels.png")
        for first in range(0, len(wanted), args.batch_size):
            _, reads, seeds = zip(*wanted[first:first + args.batch_size])
            references = torch.stack([read(name, seed) for read, seed in zip(reads, seeds)]) if args.reference else None
            made = draw(model, label_map.expand(len(seeds), -1, -1), references, seeds, args.inference, device,
                        args.amp == "bf16", show=True)
            for i, picture in enumerate(made):
                save_picture(picture, files[first + i])
                shown += [picture] if references is None else [to_pixels(references)[i], picture]
        if len(grid) < GRID_ROWS:
            grid.append((label_map, shown))
    for title, _, seed in wanted:
        heads += ["reference"] * bool(args.reference) + [f"{title}seed{seed:03d}"]
    write_grid(grid, heads, checkpoint, args.output_dir)


def write_for_scores(model, maps, read, args, ranks):
    """One picture a map and its reference, and manifest.json, which says what they are."""
    folder, seed, looks, names = args.output_dir, args.seeds[0], hashlib.sha256(), [name for name, _, _ in maps]
    for name, label_map, _ in maps:
        looks.update(label_map.numpy().tobytes() + read(name, seed).numpy().tobytes())
    manifest = {"names": names, "checkpoint": sha256_of(args.checkpoint),
                "ensemble": args.ensemble and sha256_of(args.ensemble),
                "inference": args.inference._asdict(), "label maps or references": looks.hexdigest(), "amp": args.amp,
                "noise": f"of map i: torch.randn from a CPU generator seeded with {seed} * {SEED_STRIDE} + i"}
    if ranks.rank == 0:
        claim_pictures(folder, json.loads(json.dumps(manifest)), args.force)
        (folder / "references").mkdir(exist_ok=True)
    ranks.wait()
    # dealt before looking what is there: another rank may be writing already
    shares = [batch for batch in batches(len(maps), args.batch_size, ranks)
              if not all((folder / f"{names[i]}.png").is_file() for i in batch)]
    for batch in tqdm(shares, desc="pictures", disable=ranks.rank > 0 or None):
        label_map = torch.stack([maps[i][1] for i in batch])                                          # (B, H, W)
        references = torch.stack([read(names[i], seed) for i in batch])                               # (B, 3, H, W)
        made = draw(model, label_map, references, [seed * SEED_STRIDE + i for i in batch], args.inference, ranks.device,
                    args.amp == "bf16", show=ranks.rank == 0)
        for i, reference, picture in zip(batch, to_pixels(references), made):
            save_picture(reference, folder / "references" / f"{names[i]}.png")
            save_picture(picture, folder / f"{names[i]}.png")
    ranks.wait()
    ranks.say(f"pictures: {folder}")


def main(argv):
    args = parse_options(argv)
    ranks = setup_ranks(args.device)
    model, checkpoint = load_model(args.checkpoint, args.ensemble, ranks.device)
    if args.guidance != 1 and not checkpoint["run"]["mask_dropout"]:
        raise InputError(f"--guidance {args.guidance:g}: {args.checkpoint} was never shown a picture without its label "
                         f"map; train with --mask-dropout 0.2")
    size = args.image_size or tuple(checkpoint["image_size"])
    check_sides(size, model.downsampling)
    maps = [(name, *planes) for name, planes in zip(*read_maps(args, checkpoint, size))]
    styles = open_references(args, size, [name for name, _, _ in maps]) if args.reference else {"": None}
    if args.for_scores and len(styles) * len(args.seeds) > 1:
        raise InputError(f"--for-scores: {len(styles)} images as --reference and {len(args.seeds)} --seeds; expected "
                         f"one seed, and one image, a folder with one for each label map, or train")
    if args.for_scores:
        write_for_scores(model, maps, styles.popitem()[1], args, ranks)
    else:
        write_samples(model, maps, styles, checkpoint, args, ranks.device)
    leave_ranks(ranks)


if __name__ == "__main__":
    run_script("baselines.iidm.sample", lambda: main(sys.argv[1:]))
