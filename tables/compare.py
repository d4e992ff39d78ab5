"""Train rows of the papers' tables side by side and write one table and one picture.

    python -m tables.compare --rows table6-dp-sims,table3-random,table9-oasis --seeds 0-2 --steps 500
    python -m tables.compare                            all rows of the toy comparison in RESULTS.md
    python -m tables.compare --rows iidm-table2-dm,iidm-table2-i2i --steps 7000 --batch-size 8

Every row is trained by its command (`python -m tables.rows`) and scored by evaluate.py. Steps, batch size, seeds and
segmenter are the same for all. The rows of IIDM's Table 2 are ways to sample from one training a seed. Run the same
command again to go on; add rows or seeds, and only what is missing is run. The output folder holds

    comparison.json, comparison.md   mean and spread over the seeds, row by row
    comparison.png                   label map and real picture, then one row of pictures for each row of the table
    ROW/seedS/                       the run folders, each with its eval/ (IIDM's run: iidm/seedS)
"""
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from baselines.iidm.sample import TABLE_2
from data import DATASETS, open_dataset
from readers.images import read_rgb
from support.checkpoints import read_json, read_lines, sha256_of, write_json
from support.errors import InputError, run_script
from support.options import COUNT, new_parser, number, seeds
from support.pages import colour_labels, draw_rows, legend_of
from support.ranks import ENDING, STOPPED
from tables.rows import ROWS

ROOT = Path(__file__).resolve().parent.parent
TOY_ROWS = ("table6-dp-sims", "table3-random", "table5-none", "table5-ccm-csm", "table5-bn-ccm-csm",
            "table5-no-sigmoid", "table5-no-bn", "table6-no-contrastive", "table6-no-cross-attention",
            "table8-weighted-ce", "table8-focal", "table9-oasis", "dpgan-table4a-dpgan-dpgan")
SCORES = (("mIoU", "{:.3f}"), ("of real", "{:.1%}"), ("obj-mIoU", "{:.3f}"), ("pixel accuracy", "{:.3f}"),
          ("LPIPS", "{:.3f}"), ("diversity", "{:.3f}"), ("distance", "{:.1f}"), ("mean over seeds", "{:.1f}"),
          ("deviation", "{:.2f}"), ("S", "{:.1f}"), ("S to others", "{:.1f}"), ("T", "{:.1f}"),
          ("seconds a step", "{:.3f}"))
PAGE_MAPS = 8


def parse_options(argv):
    parser = new_parser("Train and score rows of the papers' tables side by side. Run the same command again to go on.")
    add = parser.add_argument
    add("--rows", default=",".join(TOY_ROWS), help="with commas: names of `python -m tables.rows`, or "
        f"{', '.join(TABLE_2)}")
    add("--seeds", type=seeds, default="0-2", help="such as 0-2 or 0,5")
    add("--steps", type=COUNT, default=500, help="of every run")
    add("--batch-size", type=COUNT, default=4, help="of every run, over all its ranks")
    add("--dataset", choices=DATASETS, default="toy")
    add("--data-path")
    add("--preset", choices=("toy", "paper"), default="toy", help="sizes of the networks")
    add("--options", default="", help='further training options for every run, as one word: "--image-size 96x128"')
    add("--evaluate-options", default="", help='the same of evaluate.py: "--count 50"')
    add("--samples", type=number(2), default=4, help="pictures a map for the diversity")
    add("--inception-weights", default="random", help="as evaluate.py's")
    add("--output-dir", type=Path, default=Path("runs/compare"))
    args = parser.parse_args(argv)
    args.rows = args.rows.split(",")
    args.data = ["--dataset", args.dataset]
    if args.data_path:
        args.data += ["--data-path", str(Path(args.data_path).resolve())]  # the commands run in the repository's root
    args.output_dir = args.output_dir.resolve()
    for flag, given in (("--rows", args.rows), ("--seeds", args.seeds)):
        if len(set(given)) < len(given):
            raise InputError(f"{flag}: one of them is there twice, and would be counted twice")
    unknown = [row for row in args.rows if row not in (*ROWS, *TABLE_2)]
    if unknown:
        raise InputError(f"--rows {unknown[0]} is unknown; choose from {', '.join((*ROWS, *TABLE_2))}")
    if args.steps < 7 and set(args.rows) & set(TABLE_2):
        raise InputError(f"--steps {args.steps}: IIDM's rows need 7 or more, for autoencoder, U-Net and two averages")
    return args


def folders_of(args, row, seed):
    """-> (run folder, folder of the scores, folder of the pictures of seed 0) of one run."""
    run = args.output_dir / ("iidm" if row in TABLE_2 else row) / f"seed{seed}"
    scores = args.output_dir / row / f"seed{seed}"
    return run, scores / "eval", scores / ("pictures" if row in TABLE_2 else "eval/pictures/seed000")


def commands_of(args, row, seed):
    """-> (the training command, [the scoring commands]) of one run: lists of words behind `python`."""
    run, scores, pictures = folders_of(args, row, seed)
    of_iidm, checkpoint = row in TABLE_2, str(run / f"ema_{args.steps:07d}.pt")
    first = round(2 / 7 * args.steps) if of_iidm else 0  # for the autoencoder, as in the toy preset
    decay = ["0", "0"]
    if args.preset == "toy" and args.steps > 1:  # over the last 40 % of the steps behind `first`, as in the toy preset
        decay = [str(first + int(0.6 * (args.steps - first))), str(args.steps)]
    chosen = ["-m", "baselines.iidm.train", "--autoencoder-steps", str(first), "--ema-every", str(args.steps // 7)]
    if not of_iidm:
        chosen = ROWS[row].command().split()
    train = [*chosen, *args.data, "--preset", args.preset, "--seed", str(seed), "--steps", str(args.steps),
             "--batch-size", str(args.batch_size), "--lr-decay-steps", *decay, "--picture-every", "0",
             *args.options.split(), "--output-dir", str(run)]
    evaluate = [*args.data, "--inception-weights", args.inception_weights, *args.evaluate_options.split(),
                "--output-dir", str(scores), "--cache-dir", str(args.output_dir / "eval_cache")]
    if not of_iidm:
        return train, [["-m", "baselines.evaluate", "--checkpoint", checkpoint, *evaluate, "--samples",
                        str(args.samples), "--metrics", "fid,miou,diversity", "--alexnet-weights", "none",
                        "--lpips-weights", "none"]]
    options = TABLE_2[row].split()
    if "--ensemble" in options:
        # PAPER: the two checkpoints of the best FID. / HERE: the last two. / WHY: FID at every checkpoint would cost
        # as much as all the rest, and at toy size says nothing.
        every = args.steps // 7
        options.append(str(run / f"ema_{(args.steps - 1) // every * every:07d}.pt"))
    draw = ["-m", "baselines.iidm.sample", "--checkpoint", checkpoint, *args.data, *options, "--for-scores",
            "--output-dir", str(pictures)]
    if "--count" in args.evaluate_options.split():
        words = args.evaluate_options.split()
        draw += words[words.index("--count"):][:2]
    return train, [draw, ["evaluate.py", "--fake", str(pictures), *evaluate],
                   ["-m", "baselines.iidm.scores", "--fake", str(pictures), "--eval", str(scores / "eval.json")]]


def call(command, log):
    """One python command; its output goes to `log`. A signal ends it, too. Raises InputError where it fails."""
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit(STOPPED))
    with open(log, "a") as file, subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file,
                                                  stderr=file) as process:
        try:
            process.wait()
        except (KeyboardInterrupt, SystemExit):
            process.terminate()  # train.py saves then
            process.wait()
            raise
    if process.returncode:
        last = [line for line in Path(log).read_text().splitlines() if line.strip()][-1:]
        raise InputError(f"{' '.join(command)} ended with exit code {process.returncode}: {' '.join(last)} (all of it "
                         f"in {log}); put it right and run this command again")


def known(file):
    """What a JSON file holds, None where it is not there or damaged: then it is made again."""
    try:
        return read_json(file, object)
    except (OSError, ValueError):
        return None


def settings_of(args, row, seed):
    """The commands of one run without its folder: scores are those of the same commands alone."""
    train, scoring = commands_of(args, row, seed)
    return [[word.replace(str(args.output_dir), "") for word in command] for command in (train, *scoring)]


def run_one(args, row, seed):
    """Train and score one run, unless that was done. Raises InputError where a command fails."""
    train, scoring = commands_of(args, row, seed)
    run, scores, _ = folders_of(args, row, seed)
    settings = settings_of(args, row, seed)
    for folder in (run, scores.parent):
        folder.mkdir(parents=True, exist_ok=True)
    before = known(run / "command.json")
    if before not in (None, settings[0]):
        raise InputError(f"{run}: was trained with other settings ({' '.join(sorted({*before} ^ {*settings[0]}))}); "
                         f"choose another --output-dir")
    write_json(settings[0], run / "command.json")
    if not (run / f"ema_{args.steps:07d}.pt").is_file():
        call(train, run / "train.log")
    if not scored(args, row, seed):
        for command in scoring:
            call(command, scores.parent / "evaluate.log")
        write_json(settings, scores.parent / "scored.json")


def scored(args, row, seed):
    """The eval.json of a run's last step, or None where that was not scored yet."""
    run, folder, pictures = folders_of(args, row, seed)
    found, checkpoint = known(folder / "eval.json"), run / f"ema_{args.steps:07d}.pt"
    if not isinstance(found, dict) or known(folder.parent / "scored.json") != settings_of(args, row, seed):
        return None
    if row not in TABLE_2:
        return found
    # the scores are of a folder of pictures, whose manifest knows the checkpoint
    drawn = (known(pictures / "manifest.json") or {}).get("checkpoint")
    return found if "iidm" in found["scores"] and checkpoint.is_file() and drawn == sha256_of(checkpoint) else None


def scores_of(args, row, seed):
    """{column: number} of one run."""
    scores = scored(args, row, seed)["scores"]
    seconds = [line["seconds_per_step"] for line in read_lines(folders_of(args, row, seed)[0] / "metrics.jsonl")]
    ratio = scores["miou"]["ratio"]
    found = {"mIoU": scores["miou"]["generated"]["mIoU"], "of real": np.nan if ratio is None else ratio,
             "pixel accuracy": scores["miou"]["generated"]["pixel_accuracy"], "distance": scores["fid"]["value"],
             "seconds a step": float(np.median(seconds))}
    if row in TABLE_2:
        return {**found, "S": scores["iidm"]["S"], "S to others": scores["iidm"]["S_other"], "T": scores["iidm"]["T"]}
    return {**found, "diversity": scores["diversity"]["pixels"]}


def as_table(found):
    """{row: [scores of each seed]} -> a markdown table: mean +- standard deviation over the seeds."""
    columns = [(name, form) for name, form in SCORES if any(name in of_seeds[0] for of_seeds in found.values())]
    lines = ["| row | " + " | ".join(name for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, of_seeds in found.items():
        cells = []
        for name, form in columns:
            values = [scores[name] for scores in of_seeds if scores.get(name) is not None]
            cells.append(form.format(np.mean(values)) if values else "-")
            if len(values) > 1 and name != "seconds a step":
                cells[-1] += " +- " + form.format(np.std(values, ddof=1))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_comparison(args, file):
    """A row of label maps spread over the validation set, a row of real pictures, one of seed 0 for each row."""
    count, image_size = (scored(args, args.rows[0], args.seeds[0])[key] for key in ("maps", "image_size"))
    dataset = open_dataset(args.dataset, args.data_path, "val", tuple(image_size))
    maps = [i * count // PAGE_MAPS for i in range(min(PAGE_MAPS, count))]
    samples = [dataset[i] for i in maps]
    rows = [("label map", [colour_labels(s["label_map"], np.asarray(dataset.palette)) for s in samples]),
            ("real", [s["image"].permute(1, 2, 0).numpy() for s in samples])]

    def pictures_in(folder):
        return [read_rgb(folder / f"{dataset.names[i]}.png") for i in maps]
    styled = [row for row in args.rows if row in TABLE_2 and "--from-noise" not in TABLE_2[row]]
    if styled:
        rows.append(("reference", pictures_in(folders_of(args, styled[0], args.seeds[0])[2] / "references")))
    rows += [(row, pictures_in(folders_of(args, row, args.seeds[0])[2])) for row in args.rows]
    legend = legend_of([s["label_map"] for s in samples], dataset.classes, dataset.palette)
    draw_rows(rows, file, legend=legend, height=128)


def main(args):
    args.output_dir.mkdir(parents=True, exist_ok=True)
    runs = [(row, seed) for row in args.rows for seed in args.seeds]
    for row, seed in tqdm(runs, desc="runs", dynamic_ncols=True):
        run_one(args, row, seed)
    found = {row: [scores_of(args, row, seed) for seed in args.seeds] for row in args.rows}
    real = scored(args, *runs[0])["scores"]["miou"]["real"]
    write_json({"steps": args.steps, "batch_size": args.batch_size, "seeds": args.seeds, "options": args.options,
                "real": real, "rows": found}, args.output_dir / "comparison.json")
    table = as_table(found)
    if set(args.rows) & set(TABLE_2):
        name = scored(args, *runs[0])["scores"]["fid"]["name"]
        table += "\n\nT without its term 0.2 A"
        table += f", and with the {name} for FID: not the paper's" if name != "FID" else ""
    (args.output_dir / "comparison.md").write_text(table + "\n")
    draw_comparison(args, args.output_dir / "comparison.png")
    print(f"{table}\nreal pictures: mIoU {real['mIoU']:.3f}, pixel accuracy {real['pixel_accuracy']:.3f}; "
          f"{len(args.seeds)} seeds, {args.steps} steps of {args.batch_size} pictures\n"
          f"picture: {args.output_dir / 'comparison.png'}\nnumbers: {args.output_dir / 'comparison.json'}")


if __name__ == "__main__":
    run_script("tables.compare", lambda: main(parse_options(sys.argv[1:])))
