"""What a baked model is on disk: folder layout, manifest, safetensors header, hashes.

Reading any of it imports no framework. `docs/manifest.md` states the format as MUST and MAY.
"""
