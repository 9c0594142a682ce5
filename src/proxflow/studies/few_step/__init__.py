"""Ways to good samples in few evaluations, at counted cost."""
