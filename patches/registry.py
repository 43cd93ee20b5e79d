"""Which patches there are."""

import importlib

from vllm_prune.patches.base import Patch

# The first word says where a patch runs: `any` (every Python process), `server`, `core` or `worker`.
MODULES = (
    "any_torchvision_ops",
    "any_vllm_metadata",
    "worker_cpu_pruning_flag",
    "server_usage_counts",
    "server_prune_key",
    "server_prune_field",
    "server_short_videos",
    "server_damaged_videos",
    "server_damaged_images",
    "server_decoding_process",
    "server_frame_lists",
    "server_frames",
    "server_media_url_errors",
    "server_page_warning",
    "server_sent_media",
    "server_request_reports",
    "server_prune_response",
    "server_report_headers",
    "server_beam_reports",
    "server_metrics",
    "server_exit_status",
    "server_features",
    "server_startup_interrupt",
    "core_block_keys",
    "core_span_scheduling",
    "core_encoder_rows",
    "core_step_notes",
    "worker_step_notes",
    "worker_graph_replay",
    "core_parent_watch",
    "core_coordinator_watch",
    "worker_parent_watch",
    "server_parent_watch",
    "core_ray_on_cpu",
    "core_ray_placement",
    "worker_shm_queues",
    "worker_cpu_shm_group",
    "worker_cpu_draft_states",
    "worker_cpu_seeded_chunks",
    "worker_draft_rows",
)


def load_patches() -> tuple[Patch, ...]:
    """Import the patches' records, not their targets."""
    return tuple(importlib.import_module(f"vllm_prune.patches.{name}").PATCH for name in MODULES)
