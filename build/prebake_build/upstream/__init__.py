"""What upstream projects publish about their own checkpoints, read from their installed packages."""
