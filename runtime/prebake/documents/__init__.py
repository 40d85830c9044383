"""Reading and writing JSON and TOML with errors that name the file and the path in it."""
