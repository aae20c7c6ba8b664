"""Training: losses, optimisers, schedule, EMA, the update, checkpoints, and the loops that use them."""
