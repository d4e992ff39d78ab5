"""python -m baselines.evaluate: evaluate.py with the same options, for checkpoints of OASIS and DP-GAN, too."""
import sys

from baselines.train import GENERATORS
from evaluate import main
from support.errors import run_script

if __name__ == "__main__":
    run_script("baselines.evaluate", lambda: main(sys.argv[1:], GENERATORS))
