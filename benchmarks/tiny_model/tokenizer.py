"""A byte-level BPE tokenizer in which every word of the questions and answers is one token."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .questions import ANSWERS, PHRASINGS
from .scene import COLOUR_NAMES, FORMS, MOTION_NAMES

END_OF_TEXT = "<|endoftext|>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

SECONDS = " seconds"  # of timestamps; added behind the vocabulary, so all other ids are those of a model without them

# Text that users are likely to send besides the questions; it only keeps their prompts short.
COMMON_TEXT = (
    "system",
    "user",
    "assistant",
    "You are a helpful assistant.",
    "Describe the video. What happens in this video?",
    "Answer with one word.",
    "Is it a an the and or of to with without not yes no",
)

# The chat format of Qwen2.5-VL without its default system turn, which would only cost tokens here.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content or 'video_url' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _corpus() -> list[str]:
    """Each text that has to be covered, with every word in its slots."""
    slots = {"colour": COLOUR_NAMES, "form": FORMS, "motion": MOTION_NAMES}
    texts = list(COMMON_TEXT) + list(ANSWERS)
    for phrasing in (p for group in PHRASINGS.values() for p in group):
        name = next((slot for slot in slots if "{" + slot + "}" in phrasing), None)
        texts += [phrasing.format(**{name: word}) for word in slots[name]] if name else [phrasing]
    return texts


@lru_cache(maxsize=2)
def build_tokenizer(timestamps: bool = False) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the corpus; the same corpus always gives the same vocabulary.

    ``timestamps`` adds the one word that Qwen3-VL writes before every step of a video.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    if timestamps:
        core.add_tokens([AddedToken(SECONDS, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
        extra_special_tokens=[IM_START, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD],
    )


@lru_cache(maxsize=4096)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of a text with special tokens in it; the same in both models."""
    return tuple(build_tokenizer(timestamps=True).encode(text, add_special_tokens=False))


def token_id(word: str) -> int:
    """The id of a text that must be exactly one token."""
    ids = encode(word)
    if len(ids) != 1:
        raise ValueError(f"{word!r} is {len(ids)} tokens, not one")
    return ids[0]
