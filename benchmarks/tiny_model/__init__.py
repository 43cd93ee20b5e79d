"""The embedded tiny model: clip generator, training, evaluation and export.

Nothing here is imported by ``vllm_prune``; the package only ships what ``export`` and ``sample_clips`` write.
"""
