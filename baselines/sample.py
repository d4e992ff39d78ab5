"""python -m baselines.sample: sample.py with the same options, for checkpoints of OASIS and DP-GAN, too."""
import sys

from baselines.train import GENERATORS
from sample import main
from support.errors import run_script

if __name__ == "__main__":
    run_script("baselines.sample", lambda: main(sys.argv[1:], GENERATORS))
