"""`vllm-prune profile`: where the time of a request goes, stage by stage, and what a second question reuses."""
