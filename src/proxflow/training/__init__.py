"""Training: the loop, its run on disk, and what a network may be trained with."""
