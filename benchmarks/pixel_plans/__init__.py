"""Stage 1 on pixels, measured: accuracy at equal counts, and what it costs and saves."""
