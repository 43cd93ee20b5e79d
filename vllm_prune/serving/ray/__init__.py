"""What vLLM's Ray executor needs."""
