"""What more than one file of tests needs: one thread, scripts that are run, files that are read, Inception in tiny.

One thread in every test: the networks here are tiny, and two threads that wait for each other are slower.
"""
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
from PIL import Image

from support.checkpoints import read_lines

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
if hasattr(signal, "SIGHUP"):  # tests that are started by nohup ignore it, and so would the runs that they send it to
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.cpu._is_avx512_bf16_supported = lambda: False  # --amp auto: float32, which two orders of a sum need


@pytest.fixture(autouse=True)
def one_thread():
    """Scripts that are run in this process may have changed it."""
    torch.set_num_threads(1)


def call(monkeypatch, module, *arguments):
    """`python -m module arguments`, in this process. -> its exit code."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def start(*command, ranks=1, group=False):
    """A python process of its own, or so many as ranks; group: which get the signals of a group together."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks] if ranks > 1 else []
    return subprocess.Popen([sys.executable, *map(str, (*launcher, *command))], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, start_new_session=group,
                            env={**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)})


def printed_by(process):
    """What it printed, once it has ended well."""
    printed, error = process.communicate()
    assert process.returncode == 0, error[-2000:]
    return printed


def load(file):
    return torch.load(file, weights_only=True)


def lines(folder, name="metrics.jsonl"):
    return read_lines(folder / name)


def pixels(file):
    return np.array(Image.open(file)).astype(int)


class TinyFeatures(nn.Module):
    """Sixteen features instead of Inception's, where its weights do not matter."""
    width, resized = 16, "not at all"

    def forward(self, pictures):
        kernel = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return nn.functional.conv2d(pictures.float() / 255, kernel, stride=4).relu().mean(dim=(2, 3))


def tiny_inception(weights, device):
    return TinyFeatures().to(device), "tiny distance", "tiny", "tiny 1"
