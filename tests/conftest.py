"""One thread in every test: the networks here are tiny, and two threads that wait for each other are slower."""
import os

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
