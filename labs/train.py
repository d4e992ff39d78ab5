"""Train the toy model on what you have written so far; the project's code fills in the rest.

    python labs/train.py                       as README's first command, into runs/labs
    python labs/train.py --only 04,06          with your pieces of these labs alone
    python labs/train.py --steps 100 ...       all options of train.py follow

It says whose each piece is. Run the same command again to go on, with whatever you have written by then; for a fresh
run give another --output-dir. Pictures and numbers are as README explains under "How to read a run".
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train  # noqa: E402, after the line that finds the project; this is the project's, not this file
from labs.pieces import LABS, Unreadable, lab_folders, one_line, open_lab, put_in, where  # noqa: E402
from support.errors import InputError, run_script  # noqa: E402

FIRST = ["--dataset", "toy", "--output-dir", "runs/labs"]  # README's first command
# Another process, which draws scenes in advance, would not have your functions.
LAST = ["--workers", "0"]


def main(argv, labs=LABS):
    """Raises InputError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="then the options of train.py: python train.py --help", allow_abbrev=False)
    parser.add_argument("--only", metavar="NN,NN", help="pieces of these labs alone; default: of all")
    own, others = parser.parse_known_args(argv)
    numbers = own.only.split(",") if own.only else [folder.name[:2] for folder in lab_folders(labs)]
    try:
        opened = [open_lab(number, labs) for number in numbers]
    except Unreadable as error:
        raise InputError(str(error)) from None
    args = train.parse_options(FIRST + others + LAST)
    yours = {task.target: lab.functions[task.name] for lab in opened for task in lab.tasks
             if task.target and task.name in lab.written}
    print("the pieces of this run:")
    for lab in opened:
        for task in (t for t in lab.tasks if t.target):
            whose = f"yours, {task.name} in {lab.folder.name}" if task.target in yours else "the project's"
            print(f"  {task.target:<46}{whose}")
    with put_in(yours):
        try:
            return train.train(args, train.DP_SIMS)  # the exit code
        except (InputError, OSError):
            raise
        except Exception as error:  # whatever a student's function can raise, or lead to
            raise InputError(in_one_line(error, opened)) from None


def in_one_line(error, labs):
    """Where in which lab.py it happened, or which check to run."""
    for lab in labs:
        line = where(error, lab.file)
        if line:
            return f"{line}: {one_line(error)}"
    return (f"the project cannot go on with what one of your pieces gave it ({one_line(error)}); python labs/check.py "
            f"all says which")


if __name__ == "__main__":
    run_script("labs/train.py", lambda: main(sys.argv[1:]))
