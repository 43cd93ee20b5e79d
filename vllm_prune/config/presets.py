"""Configurations with a name: this project's own, and those that papers are known by."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vllm_prune.config.methods import ATTENTION, QUESTION
from vllm_prune.config.prune_config import PruneConfig
from vllm_prune.config.stage1 import Stage1Config

DEFAULT_KEEP_RATIO = 0.4
"""PruneVid's published share of tokens that stage 2 keeps."""


def _stages(tau: float, cluster_ratio: float, temporal_segment_ratio: float, keep_ratio: float) -> PruneConfig:
    stage1 = Stage1Config(tau=tau, cluster_ratio=cluster_ratio, temporal_segment_ratio=temporal_segment_ratio)
    return PruneConfig(stage1=stage1, method=ATTENTION, keep_ratio=keep_ratio)


def _attention(text: str, **fields: Any) -> PruneConfig:
    return PruneConfig(method=ATTENTION, params={"text": text, "heads": "mean"}, **fields)


def _after_fusion(selector: str) -> PruneConfig:
    return PruneConfig(
        stage1=Stage1Config(method="framefusion", cluster_ratio=0.5),
        method=ATTENTION,
        keep_ratio=0.6,
        layers=(1,),
        params={"text": "mean", "heads": "mean", "selector": selector},
    )


PRESETS: Mapping[str, PruneConfig] = MappingProxyType(
    {
        "baseline": PruneConfig(),
        "stage1_only": PruneConfig(stage1=Stage1Config()),
        "stage2_only": PruneConfig(method=ATTENTION, keep_ratio=DEFAULT_KEEP_RATIO),
        "default": _stages(0.8, 0.5, 0.25, 0.4),
        # The question chooses before the first layer, by a learned selector, with diversity over the whole video.
        "ask_first": PruneConfig(method=QUESTION, keep_ratio=0.2),
        "conservative": _stages(0.9, 0.8, 0.5, 0.6),
        "aggressive": _stages(0.7, 0.3, 0.25, 0.3),
        # FastV (ECCV 2024, arXiv:2403.06764, section 4): K = 2 layers see every token, R = 50% of them are dropped by
        # the attention of the last position, averaged over heads. `layers` count from 0.
        "fastv": _attention("last", layers=(1,), keep_ratio=0.5),
        # PyramidDrop (CVPR 2025, arXiv:2410.17247, section 3.2): four stages of equal depth, and half of the tokens
        # dropped at the end of each but the last, by the attention of the instruction's last position.
        "pyramiddrop": _attention("last", layers=(0.25, 0.5, 0.75), keep_ratio=0.5),
        # SparseVLM (ICML 2025, arXiv:2410.04417, section 3): progressively, by the mean attention of the text. The
        # layers (2, 6, 15 of 32) and shares are those published for keeping 192 of 576 tokens on average.
        "sparsevlm": _attention("mean", layers=(0.09, 0.21, 0.5), keep_ratio=(0.52, 0.67, 0.55)),
        # FrameFusion (ICCV 2025, arXiv:2501.01986, section 4): similar tokens merged, then the least important dropped,
        # to 30% in all; importance is the accumulated attention. Behind the merging a conditional DPP may choose.
        "framefusion": _after_fusion("topk"),
        "framefusion_dpp": _after_fusion("dpp"),
        # TimeChat-Online's differential token drop (ACM MM 2025, arXiv:2504.17343) on pixels: the count follows them.
        "dtd": PruneConfig(stage1=Stage1Config(where="processor", still="previous", cluster_ratio=1.0)),
    }
)
