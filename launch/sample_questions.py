"""Print three questions about the embedded clips, one a line: clip, question and right answer, separated by tabs."""

from vllm_prune.embedded import clips

QUESTIONS = 3

samples = clips()
step = len(samples) // QUESTIONS
for number, clip in enumerate(samples[::step][:QUESTIONS]):  # clips come shortest first: one of each length
    asked = clip.questions[number % len(clip.questions)]
    print(clip.path, asked.question, asked.answer, sep="\t")
