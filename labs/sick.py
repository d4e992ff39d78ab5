"""Train a sick DP-SIMS for a few minutes, without a word about what is wrong with it (lab 09).

    python labs/sick.py 3                  run 3 of 1 ... 10, into runs/sick/03; 0 is the healthy one
    python labs/sick.py --ready-made       all eleven, one after another, and the files that labs/09_sick_runs/ shows

The toy preset, 40 steps of two pictures, for all runs alike; D's backbone is pre-trained once, for all. Look at
strip.png and metrics.jsonl. In the strip, "D on ..." is the class that D likes best, "fake" left out of the choice.
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image  # noqa: E402, after the line that finds the project

import train  # noqa: E402, the project's
from labs.pieces import LABS, Task, load, put_in, remake  # noqa: E402
from support.checkpoints import read_lines  # noqa: E402
from support.errors import InputError, run_script  # noqa: E402
from support.pages import save_picture  # noqa: E402
from support.ranks import setup_ranks  # noqa: E402

LAB, RUNS = LABS / "09_sick_runs", "runs/sick"
OPTIONS = ["--dataset", "toy", "--growth", "nearest", "--steps", "40", "--batch-size", "2", "--diversity-every", "2",
           "--log-every", "5", "--picture-every", "40", "--workers", "0", "--amp", "off"]
# After 40 steps D calls most pixels "fake", as it does in a healthy run; which class it would name tells more.
STRIP = "support.pages.strip_columns", ("D(image).argmax(dim=1)", "D(image)[:, :-1].argmax(dim=1)")
SHOWN = ("G_gan", "G_contrastive", "G_diversity", "D", "D_accuracy_real", "D_accuracy_fake", "G_gradient",
         "D_gradient", "gan_gradient_image", "contrastive_gradient_image", "diversity_gradient_features", "eta")
ROWS, ROW, HEAD = 4, 128, 16  # of strip.png that a ready-made picture keeps; pixels of a row, and of the titles


def sickness(number):
    """{target: function} to put in for run `number`; for 0, the strip alone. Raises InputError."""
    teachers, changes = load(LAB / "defects.py"), [STRIP]
    names = teachers.in_order()
    if not 0 <= number <= len(names):
        raise InputError(f"there is no run {number}; there are 0, the healthy one, to {len(names)}")
    if number > 0:
        target, *change, _ = teachers.DEFECTS[names[number - 1]]
        changes.append((target, change))
    return {target: remake(Task(f"run {number}", target, None, None), None, change) for target, change in changes}


def train_sick(number, options=()):
    """Train run `number`, or go on with it -> its folder. Raises InputError."""
    args = train.parse_options([*OPTIONS, "--output-dir", f"{RUNS}/{number:02d}", *options])
    changed = sickness(number)
    if args.backbone_weights == "self":  # once for all runs, and before anything is sick
        args.backbone_weights = f"{RUNS}/backbone.pt"
        ranks = setup_ranks(args.device, fast=True)
        dataset, _, _, probabilities = train.open_run(args, ranks)
        train.pretrain(args, dataset, probabilities, Path(args.backbone_weights), ranks)
    with put_in(changed):
        code = train.train(args, train.DP_SIMS)
    if code:  # stopped by a signal
        sys.exit(code)
    return Path(args.output_dir)


def ready_made(number, run, folder):
    """strip.png and metrics.jsonl of a run folder, made small, into folder/run_NN. -> the last line of the log."""
    folder = folder / f"run_{number:02d}"
    folder.mkdir(exist_ok=True)
    strip = Image.open(run / "strip.png").convert("RGB")
    save_picture(strip.crop((0, 0, strip.width, HEAD + ROWS * ROW)).quantize(128), folder / "strip.png", 9)
    lines = [{"step": line["step"], **{key: float(f"{line[key]:.4g}") for key in SHOWN}}
             for line in read_lines(run / "metrics.jsonl")]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return lines[-1]


def side_by_side(last):
    """[last line of run 0, of run 1, ...] -> a markdown table, a row a number and a column a run."""
    rows = [["", *map(str, range(len(last)))], ["---"] * (len(last) + 1)]
    rows += [[key, *(f"{line[key]:.3g}" for line in last)] for key in SHOWN]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main(argv):
    """Raises InputError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="then the options of train.py: python train.py --help", allow_abbrev=False)
    parser.add_argument("run", nargs="?", type=int, help="0, the healthy one, to 10")
    parser.add_argument("--ready-made", action="store_true", help="train all, and write what the handout shows")
    own, others = parser.parse_known_args(argv)
    if (own.run is None) != own.ready_made:
        raise InputError("give the number of one run, 0 to 10, or --ready-made")
    if own.run is not None:
        train_sick(own.run, others)
        return
    last = [ready_made(number, train_sick(number, others), LAB) for number in range(11)]
    (LAB / "numbers.md").write_text("The last line of each run's log; run 0 is healthy.\n\n" + side_by_side(last),
                                    encoding="utf-8")


if __name__ == "__main__":
    run_script("labs/sick.py", lambda: main(sys.argv[1:]))
