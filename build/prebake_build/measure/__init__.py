"""Starts side by side: services launched in turn as processes or containers, timed from outside, and compared."""
