"""Images through the Docker SDK."""
