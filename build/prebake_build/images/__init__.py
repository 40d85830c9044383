"""Images: through the Docker SDK, and as OCI layouts that are written, read and checked."""
