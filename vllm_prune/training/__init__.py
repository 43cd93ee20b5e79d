"""Training of selectors: a frozen model's attention is the teacher, a small network learns to foresee it.

backbone.py runs the model, teacher.py keeps what it says on disk, fit.py trains, card.py reports; nothing here imports
vLLM.
"""
