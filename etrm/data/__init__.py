"""Tasks, grids, augmentations and few-shot episodes: numpy only, nothing here knows of models or training."""
