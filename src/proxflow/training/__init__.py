"""Training: the loop, its run on disk, and objectives."""
