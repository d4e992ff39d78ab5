"""Score several folders of pictures, of any systems, and write one table: a row a folder (Tables 1 and 9).

    python -m tables.others --fake spade=DIR_A oasis=DIR_B --dataset ade20k --data-path DIR
    python -m tables.others --fake DIR_A DIR_B --dataset toy --metrics fid,miou,diversity --fid-seeds 5

Each folder is scored by evaluate.py with the options that follow, so its pictures are named as their label maps. A
folder has one picture a map, or several (NAME_seed000.png, or seed000/NAME.png). What needs more pictures a map than it
has, the diversity and FID over seeds, is left out: "-". The segmenter and the statistics of the real pictures are made
once for all folders. The output folder holds

    others.json, others.md   every number, and the table with its protocols
    NAME/                    eval.json and eval.png of each folder
"""
import os
import sys
from pathlib import Path

import evaluate
from readers.generated import open_seeds
from support.checkpoints import write_json
from support.errors import InputError, run_script
from support.options import new_parser
from tables.compare import as_table


def parse_options(argv):
    """argv -> (output folder, {name: options of evaluate.py}). Raises InputError, also for folders without pictures."""
    parser = new_parser("Score folders of pictures of any systems, and write one table.", "Takes any other option of "
                        "evaluate.py, such as --data-path, --metrics, --segmenter and --inception-weights.")
    parser.add_argument("--fake", nargs="+", required=True, metavar="NAME=DIR", help="folders of generated pictures; a "
                        "DIR alone has the name of its last part")
    parser.add_argument("--dataset", choices=evaluate.DATASETS, required=True, help="its label maps name the pictures")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/others"), help="of the table and of all scores")
    args, others = parser.parse_known_args(argv)
    if "WORLD_SIZE" in os.environ:
        raise InputError("runs in one process; for many, torchrun evaluate.py --fake DIR of each folder")
    found = {}
    for text in args.fake:
        name, _, folder = ("", "", text) if Path(text).is_dir() else text.partition("=")
        name, folder = name or Path(folder).resolve().name, folder or text
        if name in found or Path(name).name != name:
            raise InputError(f"--fake {text}: the name {name} is there twice, or is none for a folder; give NAME=DIR")
        found[name] = options = evaluate.parse_options([
            "--fake", folder, "--dataset", args.dataset, "--output-dir", str(args.output_dir / name), "--cache-dir",
            str(args.output_dir / "eval_cache"), *others])
        seeds = len(open_seeds(options.fake)[0])
        options.fid_seeds = options.fid_seeds if options.fid_seeds <= seeds else 1
        if seeds < max(2, options.samples or 0):
            options.metrics = [metric for metric in options.metrics if metric != "diversity"] or options.metrics
    return args.output_dir, found


def columns_of(scores):
    """What `evaluate` returns -> {column of the table: number}."""
    fid, miou, diversity = (scores.get(metric, {}) for metric in ("fid", "miou", "diversity"))
    generated = miou.get("generated", {})
    found = {"mIoU": generated.get("mIoU"), "obj-mIoU": generated.get("obj_mIoU"), "of real": miou.get("ratio"),
             "pixel accuracy": generated.get("pixel_accuracy"), "LPIPS": diversity.get("LPIPS"),
             "diversity": diversity.get("pixels"), "distance": fid.get("value"), "mean over seeds": fid.get("mean"),
             "deviation": fid.get("deviation")}
    return {column: number for column, number in found.items() if number is not None}


def main(argv):
    output, folders = parse_options(argv)
    scores = {name: evaluate.evaluate(options) for name, options in folders.items()}
    notes = {metric: score["protocol"] for of in reversed(scores.values()) for metric, score in of.items()}
    # the same for all folders of one size
    reals = dict.fromkeys(f"real pictures: mIoU {of['miou']['real']['mIoU']:.3f}, pixel accuracy "
                          f"{of['miou']['real']['pixel_accuracy']:.3f}" for of in scores.values() if "miou" in of)
    text = "\n\n".join([as_table({name: [columns_of(of)] for name, of in scores.items()}), *reals, *notes.values()])
    write_json({"folders": {name: str(options.fake) for name, options in folders.items()}, "scores": scores},
               output / "others.json")
    (output / "others.md").write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\ntable: {output / 'others.md'}")


if __name__ == "__main__":
    run_script("tables.others", lambda: main(sys.argv[1:]))
