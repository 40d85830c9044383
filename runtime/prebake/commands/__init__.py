"""The runtime's subcommands, one module each with `add(commands)`.

A command parses its arguments, calls the module that does the work, and prints. Errors leave as `PrebakeError`;
`prebake.__main__` prints them and turns them into the exit code. Other distributions add subcommands through the
entry-point group `prebake.commands`: the command's name, and a function like `add`.
"""
