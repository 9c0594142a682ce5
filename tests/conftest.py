"""Settings of all tests."""

import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests run side by side
settings.register_profile("proxflow", deadline=None, derandomize=True)
settings.load_profile("proxflow")
