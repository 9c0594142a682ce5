"""Infrastructure of long runs: files, checkpoints, processes, logs and progress bars."""
