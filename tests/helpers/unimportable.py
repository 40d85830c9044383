"""A module whose import ends in an error, as that of a package whose compiled part does not load."""

raise OSError("Could not load this library: x.so")
