"""What a run is worth: votes over augmentations, intervals by task, nulls, plans and diagnostics of contexts."""
