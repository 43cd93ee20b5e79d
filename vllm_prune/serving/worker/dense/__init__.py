"""Stages 2 and 3 inside the language model: dense prefix, choice of tokens, compaction into the paged cache."""
