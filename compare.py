"""Train rows of the papers' tables side by side and write one table and one picture.

    python compare.py --rows table6-dp-sims,table3-random,table9-oasis --seeds 0-2 --steps 500
    python compare.py                                   all rows of the toy comparison in RESULTS.md
    python compare.py --rows iidm-table2-dm,iidm-table2-i2i --steps 7000 --batch-size 8

Every row is trained by train.py --row and scored by evaluate.py, with the same steps, batch size and seeds, by the
same segmenter. The rows of IIDM's Table 2 are ways to sample from one training a seed. Run the same command again to go
on; add rows or seeds and only what is missing is run. --jobs runs so many at a time, over the CPU cores or the GPUs
there are. The output folder holds

    comparison.json, comparison.md   mean and spread over the seeds, row by row
    comparison.png                   label map and real picture, then one row of pictures for each row of the table
    ROW/seedS/                       the run folders, each with its eval/ (IIDM's run: iidm/seedS)
"""
import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from baselines import iidm
from data import DATASETS, InputError, colour_labels, open_dataset
from evaluate import draw_eval_page
from generator import to_pixels
from sample import load_generator, open_references, parse_seeds
from train import ROWS, read_lines_of

HERE = Path(__file__).resolve().parent
TOY_ROWS = ("table6-dp-sims", "table3-random", "table5-none", "table5-ccm-csm", "table5-bn-ccm-csm", "table5-no-sigmoid",
            "table5-no-bn", "table6-no-contrastive", "table6-no-cross-attention", "table8-weighted-ce", "table8-focal",
            "table9-oasis", "dpgan-table4a-dpgan-dpgan")
SCORES = (("mIoU", "{:.3f}"), ("of real", "{:.1%}"), ("pixel accuracy", "{:.3f}"), ("diversity", "{:.3f}"),
          ("distance", "{:.1f}"), ("S", "{:.1f}"), ("S to others", "{:.1f}"), ("T", "{:.1f}"), ("seconds a step", "{:.3f}"))
PAGE_MAPS = 8


def parse_options(argv):
    parser = argparse.ArgumentParser(description="Train and score rows of the papers' tables side by side. Run the same "
                                     "command again to go on.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rows", default=",".join(TOY_ROWS), help=f"names of train.py --row, or {', '.join(iidm.TABLE_2)}, "
                        "with commas")
    parser.add_argument("--seeds", type=parse_seeds, default="0-2", help="such as 0-2 or 0,5")
    parser.add_argument("--steps", type=int, default=500, help="of every run")
    parser.add_argument("--batch-size", type=int, default=4, help="of every run, over all its ranks")
    parser.add_argument("--dataset", choices=DATASETS, default="toy")
    parser.add_argument("--data-path")
    parser.add_argument("--preset", choices=("toy", "paper"), default="toy", help="sizes of the networks")
    parser.add_argument("--options", default="", help="further options of train.py for every run, as one word: "
                        '"--image-size 96x128"')
    parser.add_argument("--evaluate-options", default="", help='the same of evaluate.py: "--count 50"')
    parser.add_argument("--samples", type=int, default=4, help="pictures a map for the diversity")
    parser.add_argument("--inception-weights", default="random", help="as evaluate.py's")
    parser.add_argument("--jobs", type=int, default=torch.cuda.device_count() or min(2, os.cpu_count() or 1),
                        help="runs at a time: each on its own GPU, or on its share of the cores")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/compare"))
    args = parser.parse_args(argv)
    args.rows = args.rows.split(",")
    unknown = [row for row in args.rows if row not in (*ROWS, *iidm.TABLE_2)]
    if unknown:
        raise InputError(f"--rows {unknown[0]} is unknown; choose from {', '.join((*ROWS, *iidm.TABLE_2))}")
    for name, low in (("steps", 1), ("batch_size", 1), ("samples", 2), ("jobs", 1)):
        if getattr(args, name) < low:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected {low} or more")
    if args.steps < 7 and set(args.rows) & set(iidm.TABLE_2):
        raise InputError(f"--steps {args.steps}: IIDM's rows need 7 or more, for autoencoder, U-Net and two averages")
    if args.dataset != "toy" and not args.data_path:
        raise InputError(f"--dataset {args.dataset} needs --data-path")
    return args


def data_flags(args):
    return ["--dataset", args.dataset] + (["--data-path", args.data_path] if args.data_path else [])


def commands_of(args, row, seed):
    """-> (run folder, folder of the scores, the train.py command, the evaluate.py command) of one run."""
    of_iidm = row in iidm.TABLE_2
    run, scores = args.output_dir / ("iidm" if of_iidm else row) / f"seed{seed}", args.output_dir / row / f"seed{seed}" / "eval"
    first = round(2 / 7 * args.steps) if of_iidm else 0  # for the autoencoder, as in the toy preset
    decay = [str(first + int(0.6 * (args.steps - first))), str(args.steps)] if args.preset == "toy" and args.steps > 1 else ["0", "0"]
    if of_iidm:
        chosen = ["--model", "iidm", "--autoencoder-steps", str(first), "--ema-every", str(args.steps // 7)]
    else:
        chosen = ["--row", row] + (["--backbone-weights", str(backbone_file(args))] if shares_backbone(args, row) else [])
    train = [str(HERE / "train.py"), *data_flags(args), "--preset", args.preset, *chosen, "--seed", str(seed), "--steps",
             str(args.steps), "--batch-size", str(args.batch_size), "--lr-decay-steps", *decay, "--picture-every", "0",
             *args.options.split(), "--output-dir", str(run)]
    evaluate = [str(HERE / "evaluate.py"), "--checkpoint", str(run / f"ema_{args.steps:07d}.pt"), *data_flags(args),
                "--inception-weights", args.inception_weights, "--alexnet-weights", "none", "--lpips-weights", "none",
                *args.evaluate_options.split(), "--output-dir", str(scores), "--cache-dir", str(args.output_dir / "eval_cache")]
    if not of_iidm:
        return run, scores, train, [*evaluate, "--metrics", "fid,miou,diversity", "--samples", str(args.samples)]
    options = iidm.TABLE_2[row].split()
    if "--ensemble" in options:
        # PAPER: the two checkpoints of the best FID. / HERE: the last two. / WHY: FID at every checkpoint would cost
        # as much as all the rest, and at toy size says nothing.
        every = args.steps // 7
        options.append(str(run / f"ema_{(args.steps - 1) // every * every:07d}.pt"))
    return run, scores, train, [*evaluate, "--metrics", "fid,miou,iidm", *options]


def backbone_file(args):
    return args.output_dir / "backbone_resnet18.pt"


def shares_backbone(args, row):
    """Whether a row's discriminator has the toy preset's own backbone, which is then pre-trained once for all."""
    return row in ROWS and args.preset == "toy" and not {"backbone", "backbone_weights"} & ROWS[row].keys()


def call(command, log, slot, jobs):
    """One python command on GPU `slot`, or on the slot's share of the cores; its output goes to `log`."""
    environment, cores = dict(os.environ), []
    if torch.cuda.device_count():
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    elif hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[slot::jobs] or sorted(os.sched_getaffinity(0))
    with open(log, "a") as file:
        done = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment,
                              preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None)
    if done.returncode:
        last = [line for line in Path(log).read_text().splitlines() if line.strip()][-1:]
        raise InputError(f"{' '.join(command)} ended with exit code {done.returncode}: {' '.join(last)} (all of it in "
                         f"{log}); put it right and run this command again")


def run_one(args, row, seed, slot, jobs, training):
    """Train and score one run, unless that was done. training: a lock for each run folder, which rows of IIDM share.
    Raises InputError where a command fails."""
    run, scores, train, evaluate = commands_of(args, row, seed)
    for folder in (run, scores.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with training[run]:
        if not (run / f"ema_{args.steps:07d}.pt").is_file():
            call(train, run / "train.log", slot, jobs)
    if not scored(args, scores):
        call(evaluate, scores.parent / "evaluate.log", slot, jobs)


def scored(args, scores):
    """The eval.json of a run's last step, or None where it was not scored yet."""
    file = scores / "eval.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    return found if Path(found["checkpoint"]).name == f"ema_{args.steps:07d}.pt" else None


def scores_of(args, row, seed):
    """{column: number} of one run."""
    run, folder, _, _ = commands_of(args, row, seed)
    scores = scored(args, folder)["scores"]
    seconds = [line["seconds_per_step"] for line in read_lines_of(run / "metrics.jsonl")]
    found = {"mIoU": scores["miou"]["generated"]["mIoU"], "of real": scores["miou"]["ratio"],
             "pixel accuracy": scores["miou"]["generated"]["pixel_accuracy"], "distance": scores["fid"]["value"],
             "seconds a step": float(np.median(seconds))}
    if row in iidm.TABLE_2:
        return {**found, "S": scores["iidm"]["S"], "S to others": scores["iidm"]["S_other"], "T": scores["iidm"]["T"]}
    return {**found, "diversity": scores["diversity"]["pixels"]}


def as_table(args, found):
    """{row: [scores of each seed]} -> a markdown table: mean +- standard deviation over the seeds."""
    columns = [(name, form) for name, form in SCORES if any(name in of_seeds[0] for of_seeds in found.values())]
    lines = ["| row | " + " | ".join(name for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, of_seeds in found.items():
        cells = []
        for name, form in columns:
            if name not in of_seeds[0]:
                cells.append("-")
                continue
            values = np.array([scores[name] for scores in of_seeds])
            cells.append(form.format(values.mean()) + (
                " +- " + form.format(values.std(ddof=1)) if len(values) > 1 and name != "seconds a step" else ""))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_comparison(args, file):
    """A row of label maps spread over the validation set, a row of real pictures, one of seed 0 for each row."""
    run, scores, _, _ = commands_of(args, args.rows[0], args.seeds[0])
    _, checkpoint = load_generator(run / f"ema_{args.steps:07d}.pt")
    dataset = open_dataset(args.dataset, args.data_path, "val", tuple(checkpoint["image_size"]))
    count = scored(args, scores)["maps"]
    maps = [i * count // PAGE_MAPS for i in range(min(PAGE_MAPS, count))]
    samples = [dataset[i] for i in maps]
    rows = [("label map", [colour_labels(s["label_map"], np.asarray(dataset.palette)) for s in samples]),
            ("real", [s["image"].permute(1, 2, 0).numpy() for s in samples])]
    if any(row in iidm.TABLE_2 for row in args.rows):
        style = open_references(["train"], args.dataset, args.data_path, dataset.image_size, [])[""]
        rows.append(("reference", list(to_pixels(torch.stack([style(dataset.names[i], 0) for i in maps])))))
    for row in args.rows:
        folder = commands_of(args, row, args.seeds[0])[1] / "pictures" / "seed000"
        rows.append((row, [np.asarray(Image.open(folder / f"{dataset.names[i]}.png")) for i in maps]))
    draw_eval_page(rows, file, titles=[], height=128)


def main(args):
    args.output_dir.mkdir(parents=True, exist_ok=True)
    runs = [(row, seed) for row in args.rows for seed in args.seeds]
    if any(shares_backbone(args, row) for row in args.rows) and not backbone_file(args).is_file():
        call([str(HERE / "train.py"), *data_flags(args), "--preset", "toy", *args.options.split(), "--pretrain-backbone",
              str(backbone_file(args)), "--output-dir", str(args.output_dir / "pretraining")],
             args.output_dir / "pretraining.log", 0, 1)
    progress = tqdm(total=len(runs), desc="runs", dynamic_ncols=True)
    training = {commands_of(args, *run)[0]: Lock() for run in runs}
    run_one(args, *runs[0], 0, 1, training)  # alone: it trains the segmenter that all share
    progress.update()
    slots = Queue()
    for slot in range(args.jobs):
        slots.put(slot)

    def work(run):
        slot = slots.get()
        try:
            run_one(args, *run, slot, args.jobs, training)
        finally:
            slots.put(slot)
        progress.update()
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, runs[1:]))
    progress.close()
    found = {row: [scores_of(args, row, seed) for seed in args.seeds] for row in args.rows}
    real = scored(args, commands_of(args, *runs[0])[1])["scores"]["miou"]["real"]
    (args.output_dir / "comparison.json").write_text(json.dumps(
        {"steps": args.steps, "batch_size": args.batch_size, "seeds": args.seeds, "options": args.options, "real": real,
         "rows": found}, indent=1))
    table = as_table(args, found)
    if set(args.rows) & set(iidm.TABLE_2):
        name = scored(args, commands_of(args, *runs[0])[1])["scores"]["fid"]["name"]
        table += "\n\nT without its term 0.2 A" + (f", and with the {name} for FID: not the paper's" if name != "FID" else "")
    (args.output_dir / "comparison.md").write_text(table + "\n")
    draw_comparison(args, args.output_dir / "comparison.png")
    print(f"{table}\nreal pictures: mIoU {real['mIoU']:.3f}, pixel accuracy {real['pixel_accuracy']:.3f}; "
          f"{len(args.seeds)} seeds, {args.steps} steps of {args.batch_size} pictures\n"
          f"picture: {args.output_dir / 'comparison.png'}\nnumbers: {args.output_dir / 'comparison.json'}")


if __name__ == "__main__":
    try:
        main(parse_options(sys.argv[1:]))
    except (InputError, OSError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
