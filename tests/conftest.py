"""Settings of all tests."""

import os

import pytest
import torch
from hypothesis import settings

from proxflow.cli import main

torch.set_num_threads(1)  # tests run side by side
os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes that they start
settings.register_profile("proxflow", deadline=None, derandomize=True)
settings.load_profile("proxflow")


@pytest.fixture
def run(capsys):
    """Runs the command line in this process: (exit status, standard output, standard error)."""

    def call(*words):
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return call
