"""How one model comes into memory: mapped, read, or by its framework's own loader, in that order.

This room and those below it (families, modules, weights, baked, documents) decide what a baked model is and how it is
brought up. The build proves its output with exactly these, and the Dockerfile copies exactly these into the stage that
bakes: a change anywhere above bakes nothing again.
"""
