"""What the user declares, and what it was resolved to: `models.toml` and `models.lock`."""
