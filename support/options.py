"""Options that several scripts share, and their ranges. Whatever does not fit becomes an InputError of one line."""
import argparse
import os
import sys

import torch

from support.errors import InputError


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default of an option to its help, where it has one and the text does not say it."""

    def _get_help_string(self, action):
        said = action.default in (None, []) or "default:" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


def new_parser(description, epilog=None):
    """An ArgumentParser that shows defaults, and raises InputError where argparse would print its usage and exit."""
    def fail(message):
        raise InputError(message.removeprefix("argument "))
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m
    parser = argparse.ArgumentParser(module and f"python -m {module.name.removesuffix('.__main__')}", epilog=epilog,
                                     description=description, formatter_class=Defaults)
    parser.error = fail
    return parser


def first_look(argv, *names):
    """What the command line says of --dataset, --preset, --backbone and `names`: other defaults depend on it."""
    parser = new_parser("")
    for name in ("dataset", "preset", "backbone", *names):
        parser.add_argument(f"--{name}")
    known, _ = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    known.dataset = known.dataset or "toy"
    known.preset = known.preset or ("toy" if known.dataset == "toy" else "paper")
    return known


def number(low, high=10 ** 9, kind=int):
    """A type for argparse: a number of `kind` from low to high."""
    def parse(text):
        try:
            if low <= kind(text) <= high:
                return kind(text)
        except ValueError:
            pass
        expected = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text}: expected {expected} from {low} to {high}")
    return parse


MOST_DRAWN = 10_000  # pictures of one label map, which are in memory together
BYTES_A_PIXEL = 512  # of one picture, at least; the toy preset's generator takes 1,340 at 1024x1024 (measured)
BATCH, WORKERS = number(1, 65_536), number(0, 1024)
COUNT, AT_LEAST_0, WEIGHT = number(1), number(0), number(0, 1e9, float)
POSITIVE, SHARE = number(1e-12, 1e9, float), number(0, 0.999999, float)


def size(text):
    """"64" or "256x512" (height x width) -> (H, W)."""
    sides = [int(side) if side.isdecimal() and len(side) < 10 else 0 for side in str(text).lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a side such as 256, or height x width as 256x512")
    if too_large(sides[0], sides[-1]):
        raise argparse.ArgumentTypeError(f"{text}: {too_large(sides[0], sides[-1])}")
    return (sides[0], sides[-1])


def too_large(H, W):
    """A text where one picture of H x W needs more memory than this machine has, or None."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    if H * W * BYTES_A_PIXEL > memory:
        side = int((memory / BYTES_A_PIXEL) ** 0.5)
        return (f"one picture needs {H * W * BYTES_A_PIXEL / 2 ** 30:,.0f} GiB or more, this machine has "
                f"{memory / 2 ** 30:,.0f}; expected below {side}x{side}")


def seeds(text):
    """"0-3,7" -> [0, 1, 2, 3, 7]."""
    found = []
    for part in text.split(","):
        first, *last = part.split("-", 1)
        ends = [int(end) if end.isdecimal() else -1 for end in (first, *last)]
        if not 0 <= ends[0] <= ends[-1] < 2 ** 32:
            raise argparse.ArgumentTypeError(f"{text}: expected seeds such as 0-7 or 0,3,5, below {2 ** 32}")
        found.append(range(ends[0], ends[-1] + 1))
    if sum(map(len, found)) > MOST_DRAWN:
        raise argparse.ArgumentTypeError(f"{text}: {sum(map(len, found)):,} seeds; expected at most {MOST_DRAWN:,}")
    return [seed for some in found for seed in some]


def add_data_options(parser, datasets):
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=datasets, default="toy", help="toy needs no files")
    group.add_argument("--data-path", help="folder of the dataset; default: data/ADEChallengeData2016, data/cityscapes "
                       "or data/coco_stuff, or these below $DP_SIMS_DATA. The error for a wrong one shows its layout")
    group.add_argument("--image-size", type=size, help="height x width: 256, or 256x512; each side divisible by 32")
    return group


def add_training_options(parser):
    """Those of every training loop here; their defaults are the caller's dict of the paper's numbers."""
    group = parser.add_argument_group("optimisation (Sec. 4.1)")
    group.add_argument("--steps", type=COUNT, help="the step to reach, not a number of further steps")
    group.add_argument("--batch-size", type=BATCH, help="GLOBAL batch size, over all ranks")
    group.add_argument("--micro-batch-size", type=AT_LEAST_0, default=0, help="images per rank in memory at once; "
                       "lower it if memory runs out (0 = all; batch norm then sees the smaller batch)")
    group.add_argument("--lr", type=POSITIVE, help="learning rate")
    group.add_argument("--lr-decay-steps", type=AT_LEAST_0, nargs=2, metavar=("FROM", "TO"),
                       help="linear decay to a tenth between these steps; 0 0 = none, as in the paper")
    group.add_argument("--clip-grad", type=WEIGHT, help="largest gradient norm; 0 = off (Swin: 1)")
    group.add_argument("--ema-decay", type=SHARE, help="of the averaged generator, after a warm-up")
    group.add_argument("--sampling", choices=("rare-class", "uniform"), help="of training images (Sec. 4.1)")
    group.add_argument("--seed", type=AT_LEAST_0, default=0)
    group.add_argument("--on-divergence", choices=("stop", "rollback"), default="stop", help="where a loss is not "
                       "finite: stop, or go on from the last checkpoint with other batches and noise, at most 3 times")
    parser.set_defaults(rollbacks=0)  # so far, no option: a checkpoint's options have it
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    machine.add_argument("--amp", choices=("auto", "off", "bf16"), default="auto", help="bf16 autocast, losses stay "
                         "float32; auto: where the GPU, or the CPU (AVX512-BF16), has it")
    machine.add_argument("--compile", action="store_true", help="torch.compile; minutes at the start")
    machine.add_argument("--profile", type=AT_LEAST_0, default=0, metavar="N", help="after N steps, says where their "
                         "time went; 0 = not")
    machine.add_argument("--workers", type=WORKERS, help="loader processes per rank")
    machine.add_argument("--watchdog", type=WEIGHT, default=300, metavar="SECONDS", help="of many ranks: end the run, "
                         "and say where it hangs, if a rank gives no sign of life for so long or no step ends for six "
                         "times as long; run the same command again to go on; 0 = never")
    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", help="run folder; a run found there is resumed")
    output.add_argument("--log-every", type=COUNT, help="steps")
    output.add_argument("--picture-every", type=AT_LEAST_0, help="steps; 0 = only at the end")
    output.add_argument("--save-every", type=AT_LEAST_0, help="steps between writes of latest.pt, which "
                        "also comes before each picture and score; 0 = only then, and at the end")
    output.add_argument("--save-minutes", type=WEIGHT, default=15, metavar="N", help="write latest.pt also where the "
                        "last write is so many minutes ago; 0 = only every --save-every steps")
    output.add_argument("--ema-every", type=AT_LEAST_0, help="steps between kept ema_*.pt; 0 = only at the end")
    return group


def add_drawing_options(parser):
    """Those of every script that draws pictures or scores them."""
    group = parser.add_argument_group("machine")
    group.add_argument("--batch-size", type=BATCH, default=16, help="lower it if memory runs out")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    group.add_argument("--amp", choices=("off", "bf16"), default="off", help="of the generator; scores stay float32")


def parse_training(parser, argv):
    """parser.parse_args, and what one option alone cannot tell. Raises InputError."""
    args = parser.parse_args(argv)
    if args.amp == "auto":
        gpu = args.device != "cpu" and torch.cuda.is_available()
        has_bf16 = (torch.cuda.is_bf16_supported(including_emulation=False) if gpu
                    else torch.cpu._is_avx512_bf16_supported())
        args.amp = "bf16" if has_bf16 else "off"
    start, end = args.lr_decay_steps = list(args.lr_decay_steps)
    if not (start == end == 0 or start < end):
        raise InputError(f"--lr-decay-steps {start} {end}: expected two rising steps, or 0 0 for none")
    return args


def check_sides(image_size, multiple, batch=None, padding=None, deepest=0):
    """Raises InputError where a side of the picture is not divisible by `multiple`, and where it does not fit.

    batch: of the pictures that batch norm sees together, in training; the deepest layer has H W / multiple^2 pixels, or
    H W / deepest^2.
    padding: of the convolutions; "reflect" needs 2 pixels each way there."""
    if too_large(*image_size):
        raise InputError(f"--image-size {image_size[0]}x{image_size[1]}: {too_large(*image_size)}")
    if any(side % multiple or side < 1 for side in image_size):
        nearest = [max(multiple, round(side / multiple) * multiple) for side in image_size]
        raise InputError(f"--image-size {image_size[0]}x{image_size[1]}: both sides must be divisible by {multiple}, "
                         f"for the pyramids halve the picture; the nearest is {nearest[0]}x{nearest[1]}")
    if padding == "reflect" and min(image_size) == multiple:
        raise InputError(f"--image-size {image_size[0]}x{image_size[1]}: this generator reflects the borders, and its "
                         f"lowest scale would have one pixel; expected sides of {2 * multiple} or more")
    deepest = deepest or multiple
    if batch == 1 and all(side < 2 * deepest for side in image_size):
        raise InputError(f"--batch-size or --micro-batch-size 1 with --image-size {image_size[0]}x{image_size[1]}: the "
                         f"deepest batch norm would see a single value; give 2 pictures, or sides of {2 * deepest}")
