"""What long work stands on: files, checkpoints, processes, logs and progress bars."""
