"""The frameworks that models come from, behind one interface: `family.Family`.

Each implementation knows how its framework constructs, loads and equips a model; none knows about tiers, threads or
weights files. `compat` repairs what would keep a framework from being imported.
"""
