"""Write a training checkpoint as a Hugging Face model folder: ``python -m benchmarks.tiny_model.export CKPT DIR``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from .config import ARCHITECTURES, Architecture, tiny_config
from .tokenizer import END_OF_TEXT, IM_END, build_tokenizer, token_id

MAX_PIXELS = 448 * 448  # larger pictures are shrunk: the model knows 112 x 112
MIN_PIXELS = 56 * 56
MAX_VIDEO_PIXELS = 1 << 23  # of all frames together, which is how Qwen3-VL counts


def _vision_settings() -> dict:
    """What image and video processors share; 112 x 112 pictures pass unchanged."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(OPENAI_CLIP_MEAN),
        "image_std": list(OPENAI_CLIP_STD),
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }


def write_processor(folder: Path, architecture: Architecture) -> None:
    """Image and video processor files in the layout that both transformers 4 and 5 read."""
    is_qwen3 = architecture == "qwen3_vl"
    shared = _vision_settings() | {"processor_class": "Qwen3VLProcessor" if is_qwen3 else "Qwen2_5_VLProcessor"}
    image = shared | {"image_processor_type": "Qwen2VLImageProcessor"}
    video = shared | {
        "video_processor_type": "Qwen3VLVideoProcessor" if is_qwen3 else "Qwen2VLVideoProcessor",
        "do_sample_frames": False,
        "min_frames": 2,
        "max_frames": 768,
        "cap_pixels_per_frame": False,
    }
    if is_qwen3:
        video["size"] = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_VIDEO_PIXELS}
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2) + "\n")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")


def write_tokenizer(folder: Path, architecture: Architecture) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template."""
    tokenizer = build_tokenizer(timestamps=architecture == "qwen3_vl")
    tokenizer.save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    # Inside the file as well: readers before transformers 5 do not know chat_template.jinja.
    config["chat_template"] = tokenizer.chat_template
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def model_from_checkpoint(path: Path, architecture: Architecture) -> PreTrainedModel:
    """The bf16 model of a training checkpoint, without the auxiliary heads."""
    state = torch.load(path, map_location="cpu")["objective"]
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    model = AutoModelForImageTextToText.from_config(tiny_config(architecture)).bfloat16()
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(
        bos_token_id=token_id(END_OF_TEXT),
        eos_token_id=token_id(IM_END),
        pad_token_id=token_id(END_OF_TEXT),
        do_sample=False,
    )
    return model.eval()


def export(checkpoint: Path, folder: Path, architecture: Architecture) -> None:
    """Write config, weights (bf16 safetensors), tokenizer and processor files to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model_from_checkpoint(checkpoint, architecture).save_pretrained(folder)
    write_tokenizer(folder, architecture)
    write_processor(folder, architecture)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors are written for the owner only; a package's data must be readable by all


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2_5_vl")
    args = parser.parse_args()
    export(args.checkpoint, args.folder, args.architecture)


if __name__ == "__main__":
    main()
