"""The page `/prune` of a server: drop a video, ask, and compare the answers with and without pruning."""
