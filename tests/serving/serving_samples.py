"""The sample clips of the embedded models, asked over HTTP."""

from __future__ import annotations

from serving_media import data_url
from serving_server import Server, text, video

from vllm_prune.embedded import clips


def share_right(server: Server, prune: object) -> tuple[float, float]:
    """Shares of the sample questions answered right, and of the video tokens kept."""
    right, kept, before, asked = 0, 0, 0, 0
    for clip in clips():
        url = video(data_url(clip.path.read_bytes()))
        for item in clip.questions:
            completion = server.ask(url, text(item.question), prune=prune, max_tokens=1)
            tokens = completion.usage.prompt_tokens_details.multimodal_tokens
            asked += 1
            right += completion.choices[0].message.content.strip() == item.answer
            kept += tokens["video"]
            before += tokens["video_before_pruning"]
    return right / asked, kept / before
