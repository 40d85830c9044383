"""One module for each library: `install(module)` replaces the library's loading functions once it is imported.

`prebake.adopt.process.HOOKS` says which module of the library each hook waits for.
"""
