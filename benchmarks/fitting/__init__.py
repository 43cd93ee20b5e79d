"""Which model fits which GPU, by which flags."""
