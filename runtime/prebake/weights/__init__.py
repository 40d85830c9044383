"""Tensors out of safetensors files: mapped, read, or copied to an accelerator."""
