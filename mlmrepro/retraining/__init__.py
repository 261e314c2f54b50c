"""Is the new checkpoint worse: baselines, checks against them, and a recipe trained with several seeds."""
