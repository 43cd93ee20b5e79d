"""One file a model family: the only place that knows a model's name."""
