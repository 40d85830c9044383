"""Files on disk: hashed, listed, compared, locked, and written completely or not at all."""
