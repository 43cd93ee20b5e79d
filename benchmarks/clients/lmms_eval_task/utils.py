"""What lmms-eval asks of a task: a question's video, text and messages, and whether an answer is right."""


def doc_to_visual(doc):
    """The videos, as paths."""
    return [doc["video"]]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    """The question."""
    return doc["question"]


def doc_to_messages(doc, lmms_eval_specific_kwargs=None):
    """One message with the whole video in it."""
    content = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]


def process_results(doc, results):
    """1 if the answer is the expected word, else 0."""
    return {"right": float(results[0].strip().lower() == doc["answer"].lower())}
