"""The build's half of each family: what its models declare, and how its framework loads a checkpoint.

`family.BuildFamily` is the interface; the runtime's half (`prebake.families`) names the class that implements it.
Importing these modules imports no framework: reading `models.toml` needs the declarations alone.
"""
