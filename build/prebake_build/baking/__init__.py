"""From `models.toml` to a baked model: fetch, load as the framework does, convert, write, prove.

`bake` holds the lock, the cache and the output folder; `worker` is the process that touches a checkpoint's bytes;
`stage` is what the Dockerfile runs.
"""
