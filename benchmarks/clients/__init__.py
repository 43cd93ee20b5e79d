"""Other people's benchmark clients against the embedded model, with a check that its videos were pruned."""
