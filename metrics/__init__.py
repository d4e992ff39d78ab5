"""The scores, one file each. In each file

    add_options     the options of evaluate.py that belong to it
    score_...       its numbers and the protocol behind them, as one dict of eval.json
    rows            lines of a table from that dict: (name, number, note)
"""
from typing import Callable, NamedTuple

import numpy as np
import torch


class Scored(NamedTuple):
    """What a score is asked about: generated and real pictures, (H, W, 3) uint8 arrays that are read by their index."""
    size: tuple             # (H, W) of all
    count: int              # of generated pictures
    fake: Callable          # fake(i, seed=0): a generated picture; of label map i where there are label maps
    fake_key: str = ""      # by which generated pictures in a folder are known again
    real: Callable = None   # real(i)
    real_count: int = 0
    real_key: str = ""      # names the real pictures, for the cache of their statistics
    how: str = ""           # where the pictures are from, for FID's protocol
    dataset: object = None  # of the label maps, where there are any


def pictures_a_map(args):
    """How many pictures of each label map, seeds 0, 1, ..., the scores in args.metrics look at."""
    return max(args.samples if "diversity" in args.metrics else 1, args.fid_seeds if "fid" in args.metrics else 1)


def to_tensor(pictures, device):
    """[(H, W, 3) uint8 array, ...] -> (B, 3, H, W) uint8 on the device. Raises ValueError for mixed sizes."""
    return torch.from_numpy(np.stack(pictures)).to(device, non_blocking=True).permute(0, 3, 1, 2)
