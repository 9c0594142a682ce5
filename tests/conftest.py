"""Settings of all tests."""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes that they start
settings.register_profile("proxflow", deadline=None, derandomize=True)
settings.load_profile("proxflow")
