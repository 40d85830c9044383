"""What is wrong with an image that carries model weights: one module for each kind of rule, and their data."""
