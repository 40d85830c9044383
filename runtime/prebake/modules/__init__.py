"""How an `nn.Module` comes about without running its constructor on real values.

`structure` reads a module from data that the build wrote. Where there is none, `skeleton` runs the constructor without
allocating values and `assembly` assigns every tensor; `kept` finds tensors that no module registers.
"""
