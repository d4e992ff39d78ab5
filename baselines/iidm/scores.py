"""IIDM's scores of a folder of pictures: mask accuracy M, style similarity S, total T (IIDM Sec. 3.1).

    python -m baselines.iidm.sample --checkpoint EMA --dataset toy --for-scores --output-dir DIR
    python evaluate.py --fake DIR --dataset toy --output-dir SCORES
    python -m baselines.iidm.scores --fake DIR --eval SCORES/eval.json

M and FID are evaluate.py's. S compares each picture with the one of its name in DIR/references. All goes into the
eval.json. The pictures may be anyone's: --references names another folder, such as that of the real pictures.
"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from readers.files import listed
from readers.images import IMAGE_ENDINGS, read_rgb
from support.checkpoints import plain, read_json, sha256_of, write_json
from support.errors import InputError, run_script
from support.options import new_parser, number


def colour_histograms(pictures):
    """(B, 3, H, W) uint8 -> (B, 3, 256) float64, pixels of each level of each channel."""
    levels = pictures.flatten(2).long()                                                       # (B, 3, HW)
    counts = levels.new_zeros(*levels.shape[:2], 256)
    return counts.scatter_add_(2, levels, torch.ones_like(levels)).double()


def style_similarity(fake, reference):
    """S (IIDM Sec. 3.1) in per cent for each pair: (B, 3, H, W) and (B, 3, H', W') uint8 -> (B,) float64.

    PAPER: "the correlation coefficient between the color histograms of the generated image and of the reference image",
    no bins. / HERE: Pearson's, of 256 bins a channel, mean over the channels. / WHY: no number of bins to choose.
    """
    a, b = (colour_histograms(pictures) for pictures in (fake, reference))                    # (B, 3, 256)
    a, b = a - a.mean(dim=2, keepdim=True), b - b.mean(dim=2, keepdim=True)
    r = (a * b).sum(dim=2) / (a.square().sum(dim=2) * b.square().sum(dim=2)).sqrt()           # (B, 3)
    return 100 * r.mean(dim=1)


def score_style(fake, references):
    """The mean of style_similarity over pairs of files."""
    def similarity(*pair):
        return style_similarity(*(torch.tensor(read_rgb(file)).permute(2, 0, 1)[None] for file in pair))
    with ThreadPoolExecutor() as pool:
        return torch.cat(list(pool.map(similarity, fake, references))).sum().item() / len(fake)


def total_score(M, A, S, FID):
    """T = M / 100 * [0.2 A + 0.3 (0.5 S + 50) + 0.5 (100 - FID)], all in per cent (IIDM Eq. 8)."""
    return M / 100 * (0.2 * A + 0.3 * (0.5 * S + 50) + 0.5 * (100 - FID))  # (IIDM Eq. 8)


def summarise(scores, S, S_other, A):
    """M, A, S and T for eval.json, with their protocol and, where FID or A is missing in T, a note that says so.

    scores: those of evaluate.py. S_other: S to another map's reference, None where all maps have the same one.
    PAPER: M by "a pretrained SegFormer", A by a model of aesthetics. / HERE: M is the pixel accuracy of --segmenter, A
    is given or left out. / WHY: neither model is named closely enough to load.
    """
    M, name, FID = 100 * scores["miou"]["generated"]["pixel_accuracy"], scores["fid"]["name"], scores["fid"]["value"]
    lacks = ["its term 0.2 A"] * (A is None) + [f"FID ({name} in its place)"] * (name != "FID")
    return {"M": M, "A": A, "S": S, "S_other": S_other, "T": total_score(M, A or 0.0, S, FID),
            "note": f"T is WITHOUT {' and '.join(lacks)}, so not IIDM's" if lacks else "",
            "protocol": "IIDM: M pixel accuracy of the segmenter above; S Pearson's correlation of 256-bin histograms, "
            "mean over R, G, B and pictures, against the reference of each map; T = M/100 [0.2 A + 0.3 (0.5 S + 50) + "
            "0.5 (100 - FID)] (IIDM Eq. 8)"}


def main(argv):
    parser = new_parser("Add IIDM's scores to those of evaluate.py --fake.")
    parser.add_argument("--fake", type=Path, required=True, metavar="DIR", help="pictures that evaluate.py has scored")
    parser.add_argument("--eval", type=Path, default="eval/eval.json", metavar="FILE", help="what it wrote")
    parser.add_argument("--references", type=Path, metavar="DIR", help="named as the pictures; default: DIR/references")
    parser.add_argument("--aesthetic", type=number(0, 100, float), metavar="A", help="in per cent, from elsewhere")
    args = parser.parse_args(argv)
    references = args.references or args.fake / "references"
    fake, styles = listed(args.fake, IMAGE_ENDINGS), listed(references, IMAGE_ENDINGS)
    alone = sorted(fake.keys() - styles.keys())
    if alone or not fake:
        raise InputError(f"{references}: no reference for {len(alone)} of the {len(fake)} pictures in {args.fake}"
                         + (f", such as {alone[0]}" if alone else ""))
    try:
        found = read_json(args.eval, {"scores": {"fid": dict, "miou": dict}, "fake": plain,
                                      "maps": lambda n: n == len(fake)})
    except (OSError, ValueError):
        found = None
    if found is None or Path(found["fake"]).resolve() != args.fake.resolve():
        raise InputError(f"--eval {args.eval}: not there, or not the FID and mIoU of these {len(fake)} pictures; run "
                         f"evaluate.py --fake {args.fake} --dataset NAME first")
    names, half = sorted(fake), len(fake) // 2
    files, of_each = [fake[name] for name in names], [styles[name] for name in names]
    alike = len({sha256_of(file) for file in of_each}) == 1  # one style for all is no other map's
    S_other = None if alike else score_style(files, of_each[half:] + of_each[:half])
    score = found["scores"]["iidm"] = summarise(found["scores"], score_style(files, of_each), S_other, args.aesthetic)
    write_json(found, args.eval)
    for key, note in (("M", "mask accuracy, %"), ("S", "style similarity to the reference, %"),
                      ("S_other", "to the reference of another map, %"), ("A", "aesthetic score, %: --aesthetic"),
                      ("T", f"total (IIDM Eq. 8) {score['note']}")):
        value = "not run" if score[key] is None else f"{score[key]:.2f}"
        print(f"{f'IIDM {key}':<34}{value:>12}  {note}")
    print(f"  {score['protocol']}\nnumbers:  {args.eval}")


if __name__ == "__main__":
    run_script("baselines.iidm.scores", lambda: main(sys.argv[1:]))
