"""The build half: checkpoints in, baked models out. Start with `prebake_build.baking.bake`."""
