"""What a running service loads, written down as `models.toml`: the service, what it loaded, names, tables."""
