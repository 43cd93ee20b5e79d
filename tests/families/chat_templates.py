"""A chat template in the manner of Qwen3.5's: a reply begins with thoughts, open or empty, and history has none."""

from __future__ import annotations

THINKING = (
    "{% set last = namespace(question=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{% set parts = [{'type': 'text', 'text': m.content}] %}"
    "{% else %}{% set parts = m.content %}{% endif %}"
    "{% if m.role == 'assistant' and loop.index0 > last.question %}"
    "<think>\n{{ (m.reasoning_content | default('')) }}\n</think>\n\n{% endif %}"
    "{% for part in parts %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif m.role == 'assistant' %}{{ part.text.split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}"
)
