"""Everything that touches vLLM: processor, model variants, positions, configuration hook."""
