"""The frozen model: visual tokens, attention at a layer, and answers from a part of the tokens.

Hugging Face's modules under vLLM's positions (text after a video goes on at its largest position + 1), layer by layer,
so that a run may end behind the teacher's layer, or begin there with fewer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.video_utils import VideoMetadata

from vllm_prune.bench.accuracy.videos import Frames
from vllm_prune.layout import MediumLayout
from vllm_prune.methods.attention_importance import attention_importance
from vllm_prune.selector import ModelIdentity
from vllm_prune.serving.api.turn_format import derive_turn_format
from vllm_prune.spans import find_reply
from vllm_prune.training.clips import Asked, Clip, Seen, timestamped
from vllm_prune.training.errors import TrainingError

ARCHITECTURES = (
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
)
_ATTENTION = "vllm_prune_watched"
_WATCHER = "vllm_prune_watcher"


class Backbone:
    """A model of `ARCHITECTURES`, frozen."""

    def __init__(self, folder: str, *, name: str = "", device: str = "cpu", dtype: torch.dtype | None = None) -> None:
        """Loads the model.

        Args:
            folder: In Hugging Face's layout, or a name on the hub.
            name: What a selector's file calls it.
            device: Of torch.
            dtype: None: float32 on a CPU, else the checkpoint's.

        Raises:
            TrainingError: Another architecture, or no chat template.
        """
        config = AutoConfig.from_pretrained(folder)
        architecture = (config.architectures or [""])[0]
        if architecture not in ARCHITECTURES:
            raise TrainingError(f"model={folder!r}: architecture {architecture!r}; use {' or '.join(ARCHITECTURES)}")
        dtype = dtype or (torch.float32 if device == "cpu" else config.dtype)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        self.model = model.to(device).eval().requires_grad_(False)
        self.language = self.model.model.language_model
        self.language.config._attn_implementation = _ATTENTION
        self.processor = AutoProcessor.from_pretrained(folder)
        turn = derive_turn_format(self.processor.tokenizer, self.processor)
        if turn is None:
            raise TrainingError(
                f"model={folder!r}: its chat template does not tell where a reply begins; use a chat model"
            )
        self.turn = turn
        self.device, self.dtype = torch.device(device), dtype
        self.table: Tensor = self.language.embed_tokens.weight
        self.identity = ModelIdentity(
            architecture=architecture,
            hidden_size=self.table.shape[1],
            num_layers=len(self.language.layers),
            vocab_size=len(self.table),
            revision=getattr(config, "_commit_hash", None) or "",
            name=name or folder,
        )
        self._tokens_per_second = getattr(config.vision_config, "tokens_per_second", None)

    @torch.no_grad()
    def encode(self, frames: Frames) -> Clip:
        """The visual tokens of a video."""
        metadata = {key: value for key, value in frames.metadata().items() if key != "do_sample_frames"}
        output = self.processor.video_processor(
            videos=[frames.pixels],
            video_metadata=[VideoMetadata(**metadata)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        grid = output["video_grid_thw"].to(self.device)
        found = self.model.model.get_video_features(output["pixel_values_videos"].to(self.device), grid)
        features, *levels = (
            torch.cat(tuple(part)).to(self.dtype)
            for part in (getattr(found, "pooler_output", found), *(getattr(found, "deepstack_features", None) or ()))
        )
        t, h, w = grid[0].tolist()
        side = self.processor.video_processor.merge_size
        layout = self._layout(frames, (t, h // side, w // side))
        levels_in_one = torch.cat(levels, 1) if levels else features[:, :0]
        return Clip(features, levels_in_one, self.embed(layout.text_ids()), layout)

    def _layout(self, frames: Frames, grid: tuple[int, int, int]) -> MediumLayout:
        if self.identity.architecture != "Qwen3VLForConditionalGeneration":
            return MediumLayout(grid, t_factor=self._t_factor(frames))
        together = self.processor.video_processor.temporal_patch_size
        return timestamped(grid, frames.indices, frames.fps, together, self.processor.tokenizer, self.model.config)

    def _t_factor(self, frames: Frames) -> float:
        """Positions between two steps, which are `temporal_patch_size` frames apart."""
        if self._tokens_per_second is None:
            return 1.0
        sampled = len(frames.indices) / frames.total * frames.fps
        return float(self.processor.video_processor.temporal_patch_size / sampled * self._tokens_per_second)

    def ask(self, text: str) -> Asked:
        """The prompt of a question about one video, as the chat template has it."""
        content = [{"type": "video"}, {"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self.processor.tokenizer(prompt, add_special_tokens=False).input_ids
        place = ids.index(self.model.config.video_token_id)
        tail, special = ids[place + 1 :], set(self.turn.special)
        end = find_reply(tail, 0, self.turn)
        # What serving takes for the question (`question_ids`), and where it stands.
        rows = [row for row, token in enumerate(tail[:end]) if token not in special]
        return Asked(ids[:place], tail, rows)

    def positions(self, clip: Clip, asked: Asked) -> Tensor:
        """[3, h + N + S + t] int64, vLLM's."""
        start, after = len(asked.head), len(asked.head) + clip.layout.extent()
        head, tail = torch.arange(start), after + torch.arange(len(asked.tail))
        video = torch.from_numpy(clip.layout.offsets()).T + start
        return torch.cat([head.expand(3, -1), video, tail.expand(3, -1)], 1).to(self.device)

    @torch.no_grad()
    def see(self, clip: Clip, questions: Sequence[Asked], layer: int) -> list[Seen]:
        """The teacher's view of each question, at `layer`; the video is run once. All questions share their head."""
        layers, cache = range(layer + 1), DynamicCache()
        start, count = len(questions[0].head), clip.layout.num_slots
        medium = clip.rows()
        rows = torch.cat([self._widened(self.embed(questions[0].head), medium), medium])
        prefix = self.run(rows[None], self.positions(clip, questions[0])[:, None, : start + count], layers, cache)[0]
        seen = []
        for asked in questions:
            tail, importance = self._see_tail(clip, asked, layers, cache)
            seen.append(Seen(importance, prefix[:start], prefix[start:], tail))
            cache.crop(-len(asked.tail))
        return seen

    def _see_tail(self, clip: Clip, asked: Asked, layers: range, cache: Any) -> tuple[Tensor, Tensor]:
        start = len(asked.head) + clip.layout.num_slots
        length = len(asked.tail)
        visible = start + 1 + torch.arange(length, device=self.device)
        tokens = len(asked.head) + clip.cells
        found: list[Tensor] = []

        def watch(query: Tensor, key: Tensor, scale: float) -> None:
            parts = query[0].transpose(0, 1), visible, key[0].transpose(0, 1), tokens
            found.append(attention_importance(*parts, scale=scale))

        mask = torch.arange(start + length, device=self.device) < visible[:, None]
        positions = self.positions(clip, asked)[:, None, start:]
        attention = self.language.layers[layers[-1]].self_attn
        setattr(attention, _WATCHER, watch)
        try:
            rows = self.run(self.embed(asked.tail)[None], positions, layers, cache, mask[None, None])
        finally:
            delattr(attention, _WATCHER)
        return rows[0], found[0]

    def rows(self, clip: Clip, asked: Asked, kept: Tensor | None = None) -> Tensor:
        """[S, (1 + L) * C] a prompt as it enters layer 0, of the video the tokens `kept` ([K] increasing), or all."""
        medium = clip.rows()
        if kept is not None:
            medium = medium[clip.places(kept)]
        head, tail = (self._widened(self.embed(ids), medium) for ids in (asked.head, asked.tail))
        return torch.cat([head, medium, tail])

    @staticmethod
    def _widened(rows: Tensor, like: Tensor) -> Tensor:
        """Rows with nothing for later layers."""
        return torch.nn.functional.pad(rows, (0, like.shape[1] - rows.shape[1]))

    def embed(self, ids: Sequence[int]) -> Tensor:
        """[n, C] embeddings."""
        return self.language.embed_tokens(torch.tensor(list(ids), dtype=torch.int64, device=self.device))

    def run(
        self, rows: Tensor, positions: Tensor, layers: range, cache: Any = None, mask: Tensor | None = None
    ) -> Tensor:
        """Output [B, S, C] of the last of `layers` for `rows` [B, S, C] at `positions` [3, B, S].

        rows: [B, S, (1 + L) * C] where layer 0 is the first: deepstack's levels are added behind the layers.
        mask: [B, 1, S, keys] bool or additive; None: causal.
        """
        rows, *levels = rows.split(self.table.shape[1], -1)
        rotary = self.language.rotary_emb(rows, positions)
        for index in layers:
            rows = self.language.layers[index](
                rows,
                attention_mask=mask,
                position_embeddings=rotary,
                past_key_values=cache,
                use_cache=cache is not None,
            )
            if index < len(levels):
                rows = rows + levels[index]
        return rows

    @torch.no_grad()
    def answer(self, rows: Sequence[Tensor], positions: Sequence[Tensor], first: int = 0) -> Tensor:
        """[B] the likeliest next token after each prompt.

        Args:
            rows: [S, C] each, as they enter layer `first`; [S, (1 + L) * C] for layer 0.
            positions: [3, S] each.
            first: Index of a layer.
        """
        lengths = torch.tensor([len(each) for each in rows], device=self.device)
        # Padding comes after everything that is read: causal attention never sees it.
        padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        places = torch.nn.utils.rnn.pad_sequence([each.T for each in positions], batch_first=True).permute(2, 0, 1)
        hidden = self.run(padded, places, range(first, len(self.language.layers)))
        last = hidden[torch.arange(len(rows), device=self.device), lengths - 1]
        return self.model.lm_head(self.language.norm(last)).argmax(-1)


def _watched_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Hugging Face's attention; a watcher set on the module is shown queries and keys first."""
    watch: Callable[[Tensor, Tensor, float], None] | None = getattr(module, _WATCHER, None)
    if watch is not None:
        watch(query, key, kwargs.get("scaling") or query.shape[-1] ** -0.5)
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _watched_attention)
