"""A folder of pictures in, its scores out. With a checkpoint the pictures are drawn first (DP-SIMS Sec. 4.1-4.3).

    python evaluate.py --checkpoint runs/toy/ema_0001600.pt
    python evaluate.py --checkpoint EMA --data-path DIR --segmenter hf:facebook/mask2former-swin-large-ade-semantic
    python evaluate.py --fake DIR --dataset folder --data-path DIR     anyone's pictures, named as their label maps
    python evaluate.py --fake DIR --real DIR                           two folders of pictures, FID alone
    torchrun --nproc_per_node 8 evaluate.py --checkpoint EMA ...       the same numbers, sooner

    metric      what                                                                   table    in metrics/
    fid         Frechet distance of Inception features, one picture a map              1, 2, 3  fid.py
    miou        a segmenter's IoU with the label maps, beside that on real pictures    1, 2, 3  segmentation.py
    diversity   LPIPS between pictures of one map, and the difference of their pixels  9        diversity.py
    latency     one picture, 50 runs; pictures a second, memory, parameters            4        latency.py

`evaluate` is the whole in five steps: open, load, draw, score, write. The output folder gets

    eval.json       every number with its protocol; of the same pictures, a later call adds its metrics to it
    eval.png        the best and the worst maps by IoU: label map, real picture, four seeds
    pictures/       seedNNN/NAME.png, with a checkpoint; a run that was killed goes on from them

A picture depends on its label map and its seed alone, and no score depends on the number of ranks.
"""
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import support  # noqa: F401, before torch, which takes seconds
import numpy as np
import torch
import torchvision
from PIL import Image

from data import DATASETS, open_dataset
from metrics import Scored, diversity, fid, latency, pictures_a_map, segmentation
from readers.files import stamps
from readers.generated import open_pictures, open_seeds
from readers.images import read_rgb
from sample import GENERATORS, MOST_SEEDS, SEED_STRIDE, conditions, generate, load_generator, noise, open_fitting
from support.checkpoints import digest, plain, read_json, sha256_of, write_json
from support.errors import InputError, run_script
from support.options import AT_LEAST_0, add_drawing_options, check_sides, new_parser, number, size
from support.pages import colour_labels, draw_rows, legend_of, save_picture
from support.ranks import batches, leave_ranks, rank_0_first, read_ahead, setup_ranks
from support.weights import has_lite

METRICS = {"fid": fid, "miou": segmentation, "diversity": diversity, "latency": latency}
PAGE_ROWS, PAGE_SEEDS = 4, 4  # best maps and as many worst ones; pictures of each


def evaluate(args, generators=GENERATORS):
    """Open, load, draw, score, write, on every rank.

    args: of parse_options. generators: {architecture: class} of the checkpoints that may be scored.
    -> {metric: its numbers and their protocol}, which is "scores" of eval.json. Raises InputError.
    """
    ranks, scores, page = setup_ranks(args.device), {}, []
    # open: what is scored, and against what
    G, scored = open_checkpoint(args, ranks, generators) if args.checkpoint else (None, open_folders(args))
    manifest = claim_folders(args, scored.dataset, ranks)

    # load: first, so that a missing file fails before the hours of work
    inception, lpips, latencies, segmenter = load_networks(args, G, scored.dataset, ranks)

    with fid.scoring_precision():  # one algorithm for every picture and score, whatever the number of ranks
        # draw: seed 0 of each map for FID and IoU, further seeds for the diversity and --fid-seeds
        if G is not None and args.metrics != ["latency"]:
            write_pictures(G, scored, args, range(pictures_a_map(args)), ranks)

        # score: read the files and measure
        if "fid" in args.metrics:
            scores["fid"] = fid.score_fid(inception, scored, ranks, args.batch_size, args.cache_dir, args.fid_seeds)
        if "miou" in args.metrics:
            scores["miou"], by_map = segmentation.score_segmentation(segmenter, scored, ranks, args.batch_size)
            page = best_and_worst(by_map)
        if "diversity" in args.metrics:
            scores["diversity"] = diversity.score_diversity(lpips, scored, args.samples, ranks)
        if latencies is not None:
            scores["latency"] = latencies

        # write: eval.json, and eval.png, which shows more seeds of a few maps
        if G is not None and page:
            write_pictures(G, scored, args, range(PAGE_SEEDS), ranks, only=[i for _, i, _ in page])
    if ranks.rank == 0:
        write_scores(args, scores, scored, page, manifest, ranks)
    leave_ranks(ranks)
    return scores


# ------------------------------------------------------------------------------------------------- open

def open_checkpoint(args, ranks, generators):
    """--checkpoint -> the generator, and Scored for the pictures that it is going to draw. Sets args.dataset.

    Raises InputError where the label maps do not fit the generator.
    """
    G, checkpoint = load_generator(args.checkpoint, ranks.device, generators)
    args.dataset, image_size = args.dataset or checkpoint["dataset"], args.image_size or tuple(checkpoint["image_size"])
    check_sides(image_size, G.downsampling, padding=G.first.padding_mode)
    dataset = open_fitting(checkpoint, args.dataset, args.data_path, args.split, image_size)
    return G, with_label_maps(args, dataset, "seed 0 of the averaged generator",
                              lambda i, seed=0: read_rgb(file_of(args, seed, dataset.names[i]), sealed=args.seal))


def open_folders(args):
    """--fake with --dataset or --real -> Scored. Raises InputError where the pictures do not fit together."""
    found, (H, W) = open_seeds(args.fake) if args.dataset else open_pictures(args.fake, "--fake")
    of_fake = "\n".join(stamps(f.resolve() for some in (found if args.dataset else [found]) for f in some.values()))
    if args.image_size not in (None, (H, W)):
        raise InputError(f"--fake {args.fake}: pictures of {H}x{W} (height x width), not {args.image_size[0]}x"
                         f"{args.image_size[1]}; generated pictures are scored as they are")
    if args.dataset:
        dataset = open_dataset(args.dataset, args.data_path, args.split, (H, W), instances=False)
        names = dataset.names[:args.count or None]
        for files in found:
            alone = [name for name in names if name not in files]
            if alone:
                raise InputError(f"--fake {args.fake}: no picture of {len(alone)} of the {len(names)} label maps, such "
                                 f"as {alone[0]}.png; expected one named as each label map (--count N for the first N)")
        args.samples = args.samples or max(2, len(found))
        if pictures_a_map(args) > len(found):
            raise InputError(f"--fake {args.fake}: {len(found)} pictures a map for diversity or --fid-seeds; expected "
                             f"{pictures_a_map(args)} or more, as NAME_seed000.png or seed000/NAME.png")
        return with_label_maps(args, dataset, f"{suffixes(found[0])} files",
                               lambda i, seed=0: read_rgb(found[seed][dataset.names[i]]), of_fake)

    real_files, real_size = open_pictures(args.real, "--real", args.image_size)
    if real_size != (H, W):
        raise InputError(f"--real {args.real}: pictures of {real_size[0]}x{real_size[1]} (height x width), those of "
                         f"--fake are {H}x{W}; --image-size {H}x{W} resizes them")
    fake, real = list(found.values()), list(real_files.values())

    def read_real(i):
        picture = read_rgb(real[i])
        return np.array(Image.fromarray(picture).resize((W, H), Image.BICUBIC)) if args.image_size else picture
    stats = "\n".join(stamps(file.resolve() for file in real))
    how = f"; files {suffixes(found)} generated, {suffixes(real_files)} real" + (
        "; real pictures resized bicubic" if args.image_size else ", as they are")
    return Scored((H, W), len(fake), lambda i, seed=0: read_rgb(fake[i]), of_fake, read_real, len(real), stats, how)


def with_label_maps(args, dataset, what, fake, fake_key=""):
    """Scored for one generated picture of each label map. what: these pictures, in words. The rest: see Scored."""
    count = min(len(dataset), args.count or len(dataset))
    if count < 2:
        raise InputError(f"--dataset {args.dataset}: {count} pictures to score; expected 2 or more (a covariance)")
    how = f"; one for each label map of {args.dataset} {args.split}, {what}; real pictures resized bicubic"
    return Scored(dataset.image_size, count, fake, fake_key, lambda i: dataset[i]["image"].permute(1, 2, 0).numpy(),
                  count, dataset.fingerprint(), how, dataset)


def suffixes(files):
    return " ".join(sorted({file.suffix for file in files.values()}))


def load_networks(args, G, dataset, ranks):
    """What args.metrics asks for, None for the rest: (Inception, LPIPS, latency, segmenter), the latency on rank 0."""
    inception = lpips = latencies = segmenter = None
    toy = args.dataset == "toy"  # what a newcomer gets without a download
    if "fid" in args.metrics:
        weights = args.inception_weights or (fid.without_download() if toy else "download")
        inception = rank_0_first(lambda: fid.load_inception(weights, ranks.device), ranks)
    if "diversity" in args.metrics:
        both = [weights or ("none" if toy else "download") for weights in (args.alexnet_weights, args.lpips_weights)]
        lpips = rank_0_first(lambda: diversity.load_lpips(*both, ranks.device), ranks)
    if "latency" in args.metrics and ranks.rank == 0:  # before the segmenter, which takes memory too
        label_map, offsets = conditions([dataset[0]])                                     # (1, H, W), (1, 2, H, W)
        z, compiled = noise([0], 0, G.z_dim), args.latency_modes == "both"                # (1, d_z)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):  # fp32 means fp32
            latencies = latency.score_latency(G, label_map, z, offsets, compiled, ranks)
    ranks.wait()
    kind = args.segmenter or ("lite0" if not toy and has_lite("efficientnet_lite0") else "small")
    if "miou" in args.metrics and kind in ("lite0", "small"):
        training = open_dataset(args.dataset, args.data_path, "train", dataset.image_size, instances=False)
        segmenter = segmentation.trained_segmenter(training, args.dataset, kind, args.segmenter_steps,
                                                   args.segmenter_seed, ranks, args.cache_dir)
    elif "miou" in args.metrics:
        segmenter = segmentation.load_segmenter(kind, dataset, ranks, args.batch_size, args.segmenter_size,
                                                args.segmenter_labels, args.trust_segmenter)
    return inception, lpips, latencies, segmenter


# ------------------------------------------------------------------------------------------------- draw

def claim_folders(args, dataset, ranks):
    """Make the output folders. -> the manifest of the drawn pictures, which is kept beside them, or None.

    Raises InputError where pictures with another manifest are there already, unless --force throws them away.
    """
    folder, manifest = args.output_dir / "pictures", args.checkpoint and {
        "names": list(dataset.names), "checkpoint": sha256_of(args.checkpoint),
        "dataset": digest(dataset.fingerprint()), "seal": "of this file, the name and the pixels, in each PNG",
        "split": args.split, "image_size": list(dataset.image_size), "amp": args.amp,
        "noise": f"z of map i and seed s: torch.randn from a CPU generator seeded with s * {SEED_STRIDE} + i"}
    args.seal = digest(json.dumps(manifest))
    if ranks.rank == 0:
        for needed in (args.output_dir, args.cache_dir):
            needed.mkdir(parents=True, exist_ok=True)
        require_own_scores(args)
        if manifest:
            claim_pictures(folder, manifest, args.force)
    ranks.wait()
    return manifest


def require_own_scores(args):
    """Sets args.earlier, what eval.json has, or None. Raises InputError where that is of another folder, or not of a
    folder, without --force. Of two checkpoints claim_pictures tells."""
    file = args.output_dir / "eval.json"
    try:
        found = read_json(file, {"fake": plain, "checkpoint": plain, "scores": dict}) if file.exists() else None
    except (OSError, ValueError):
        raise InputError(f"{file}: not readable as scores; move it away, or choose another --output-dir") from None
    folders = [Path(folder).resolve() for folder in (found and found["fake"], args.fake) if folder]
    if found and folders and (len(folders) < 2 or folders[0] != folders[1]) and not args.force:
        raise InputError(f"{file}: has the scores of {found['fake'] or found['checkpoint']}; choose another "
                         f"--output-dir, or --force to overwrite")
    args.earlier = found


def claim_pictures(folder, manifest, force):
    """Make `folder` the home of the pictures that `manifest` describes. force: remove those that an older manifest
    lists, and no other file. Raises InputError where others live there."""
    if folder.is_dir() and {file.name for file in folder.iterdir()} - {"manifest.json.tmp"}:  # of a kill
        try:
            found = read_json(folder / "manifest.json", {"names": [plain]})
            old = {f"{name}.png" for name in found["names"]}
        except (OSError, ValueError):
            raise InputError(f"{folder}: holds files, but no manifest.json that says which checkpoint they are of; "
                             f"choose another --output-dir, or move them away") from None
        differ = [key for key in manifest if found.get(key) != manifest[key]]
        if differ and not force:
            raise InputError(f"{folder}: holds pictures of another {', '.join(differ)}; choose another --output-dir, "
                             f"or --force to throw them away")
        for file in [*folder.glob("*.png"), *folder.glob("*/*.png")] if force else ():
            if file.name in old:
                file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(manifest, folder / "manifest.json")


def file_of(args, seed, name):
    return args.output_dir / "pictures" / f"seed{seed:03d}" / f"{name}.png"


def write_pictures(G, scored, args, seeds, ranks, only=None):
    """Draw every map under each seed, where the files are not there yet. only: the batches with these maps alone."""
    for seed in seeds:
        file_of(args, seed, "").parent.mkdir(parents=True, exist_ok=True)
    files = {seed: [file_of(args, seed, name) for name in scored.dataset.names[:scored.count]] for seed in seeds}
    # assigned before looking at files: another rank may be writing already
    shares = [batch for batch in batches(scored.count, args.batch_size, ranks)
              if (only is None or set(only) & set(batch))
              and not all(files[seed][i].is_file() for seed in seeds for i in batch)]
    with ThreadPoolExecutor() as pool:
        for batch, samples in read_ahead(scored.dataset.__getitem__, shares, "pictures", ranks):
            writing = []
            for seed in seeds:
                missing = [n for n, i in enumerate(batch) if not files[seed][i].is_file()]
                if missing:
                    # TRAP: the whole batch again though one picture is missing: a smaller batch rounds differently
                    z = noise(batch, seed, G.z_dim)                                       # (B, d_z)
                    drawn = generate(G, *conditions(samples), z, ranks.device, args.amp == "bf16")  # (B, H, W, 3)
                    writing += [pool.submit(save_picture, drawn[n], files[seed][batch[n]], 1, args.seal)
                                for n in missing]
            for written in writing:
                written.result()
    ranks.wait()


# ------------------------------------------------------------------------------------------------- write

def best_and_worst(by_map):
    """(N,) IoU by map -> [("best", i, its IoU), ..., ("worst", j, its IoU)], no map twice."""
    order = [i for i in by_map.argsort(descending=True, stable=True).tolist() if not by_map[i].isnan()]
    best, worst = order[:PAGE_ROWS], order[max(PAGE_ROWS, len(order) - PAGE_ROWS):]
    return [(what, i, by_map[i].item()) for what, some in (("best", best), ("worst", worst[::-1])) for i in some]


def write_scores(args, scores, scored, page, manifest, ranks):
    """eval.json, eval.png of the maps in `page` (see best_and_worst), and the table on the terminal."""
    (H, W), dataset, out = scored.size, scored.dataset, args.output_dir
    paths = {"checkpoint": str(args.checkpoint or ""), "fake": str(args.fake or ""), "real": str(args.real or "")}
    about = {"dataset": args.dataset, "split": args.split, "image_size": [H, W], "maps": scored.count,
             "pictures": digest(scored.fake_key), "against": digest(scored.real_key),
             "torch": torch.__version__, "torchvision": torchvision.__version__, "device": str(ranks.device),
             "manifest": manifest and {**manifest, "names": len(manifest["names"])}}
    earlier = args.earlier["scores"] if args.earlier and about.items() <= args.earlier.items() else {}
    kept = {metric: score for metric, score in earlier.items()  # what others made of scores goes with these
            if metric in METRICS or set(scores).isdisjoint(earlier)}
    write_json({**paths, **about, "scores": {**kept, **scores}}, out / "eval.json")
    if args.earlier and not earlier:
        ranks.say(f"{out / 'eval.json'}: had scores of other pictures, or of another torch; they are replaced")
    ranks.say(f"{args.checkpoint or args.fake}: {scored.count} pictures of {H}x{W} (height x width)")
    for metric, score in scores.items():
        for name, value, note in METRICS[metric].rows(score):
            ranks.say(f"{name:<34}{value:>12}  {note}".rstrip())
    ranks.say("\n".join(f"  {score['protocol']}" for score in scores.values()))
    maps = [dataset[i]["label_map"] for _, i, _ in page]                                  # (H, W) each
    rows = []
    for label_map, (what, i, iou) in zip(maps, page):
        drawn = [scored.fake(i, seed) for seed in range(PAGE_SEEDS if args.checkpoint else 1)]
        rows.append((f"{what}: {dataset.names[i]}, IoU {iou:.3f} (seed 0)",
                     [colour_labels(label_map, dataset.palette), scored.real(i), *drawn]))
    if rows:
        draw_rows(rows, out / "eval.png", ("label map", "real", *(f"seed {seed}" for seed in range(PAGE_SEEDS))),
                  legend_of(maps, dataset.classes, dataset.palette))
        ranks.say(f"page:     {out / 'eval.png'}")
    ranks.say(f"numbers:  {out / 'eval.json'}")


# ------------------------------------------------------------------------------------------------- options

def parse_options(argv):
    """argv -> argparse.Namespace. Raises InputError for options that do not fit together."""
    parser = new_parser("Score a generator, or folders of pictures. Run it again to go on where it stopped.")
    group = parser.add_argument_group("what is scored")
    group.add_argument("--checkpoint", type=Path, help="an ema_*.pt of a run folder")
    group.add_argument("--fake", type=Path, metavar="DIR", help="instead: a folder of generated pictures; with "
                       "--dataset they are named as its label maps")
    group.add_argument("--real", type=Path, metavar="DIR", help="with --fake: a folder of real pictures, not --dataset")
    group.add_argument("--dataset", choices=DATASETS, help="default: what the checkpoint was trained on")
    group.add_argument("--data-path", help="folder of the dataset; not needed for toy")
    group.add_argument("--split", choices=("train", "val"), default="val")
    group.add_argument("--count", type=AT_LEAST_0, default=0, help="only the first so many maps; 0 = all")
    group.add_argument("--image-size", type=size, help="height x width; default: as trained, or that of the pictures "
                       "of --fake, to which real ones are then resized")
    group = parser.add_argument_group("scores")
    group.add_argument("--metrics", help=f"some of {','.join(METRICS)}; default: all, or what --fake allows of them")
    group.add_argument("--samples", type=number(2, MOST_SEEDS), help="pictures a map for the diversity; default: 20 "
                       "(Table 9), or all that --fake has")
    for metric in METRICS.values():
        metric.add_options(group)
    group = parser.add_argument_group("output")
    group.add_argument("--output-dir", type=Path, help="default: eval_STEP beside the checkpoint, or eval")
    group.add_argument("--cache-dir", type=Path, help="statistics of real pictures and trained segmenters; default: "
                       "eval_cache beside the output folder")
    group.add_argument("--force", action="store_true", help="throw away another checkpoint's pictures in --output-dir")
    add_drawing_options(parser)
    return check(parser.parse_args(argv))


def check(args):
    """args with the metrics that are possible, as a list, and with its folders. Raises InputError."""
    if bool(args.checkpoint) == bool(args.fake):
        raise InputError("give either --checkpoint EMA_FILE or --fake DIR")
    if args.fake and bool(args.real) == bool(args.dataset) or args.real and (not args.fake or args.fid_seeds > 1):
        raise InputError("--fake DIR needs --real DIR or --dataset NAME; --real DIR needs --fake DIR, no --fid-seeds")
    possible = list(METRICS) if args.checkpoint else ["fid", "miou", "diversity"] if args.dataset else ["fid"]
    asked = args.metrics.split(",") if args.metrics else possible if args.checkpoint else possible[:2]
    args.samples = args.samples or (20 if args.checkpoint else None)
    for metric in asked:
        if metric not in METRICS:
            raise InputError(f"--metrics {metric}: no such score; choose from {','.join(possible)}")
        if metric not in possible:
            raise InputError(f"--metrics {metric}: needs {'--checkpoint' if metric == 'latency' else '--dataset'}")
    args.metrics = [metric for metric in METRICS if metric in asked]
    if args.output_dir is None:
        step = args.checkpoint and args.checkpoint.stem.removeprefix("ema_")
        args.output_dir = args.checkpoint.with_name(f"eval_{step}") if args.checkpoint else Path("eval")
    args.cache_dir = args.cache_dir or args.output_dir.parent / "eval_cache"
    return args


def main(argv, generators=GENERATORS):
    evaluate(parse_options(argv), generators)


if __name__ == "__main__":
    run_script("evaluate.py", lambda: main(sys.argv[1:]))
