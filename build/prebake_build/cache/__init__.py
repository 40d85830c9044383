"""The build cache: checkpoints as they were fetched, shared by all builds of a machine."""
