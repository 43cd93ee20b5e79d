"""MVBench (Li et al., CVPR 2024): a JSON file for each of 20 tasks in json/, videos of eleven sources in video/."""

from __future__ import annotations

from pathlib import Path

from vllm_prune.bench.accuracy.datasets.records import Record, find_video, read_tasks
from vllm_prune.bench.accuracy.questions import Question
from vllm_prune.bench.accuracy.videos import FileVideo, FrameFolder, Video
from vllm_prune.bench.throughput.errors import BenchmarkError

FILES = "json/TASK.json, video/SOURCE/..."
FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
"""Where the videos of a task lie below video/. Sources use the same file names, so a search would not do."""
FRAMES_TASK, FRAMES_FPS = "episodic_reasoning", 3.0
"""The one task whose videos are folders of pictures, and their rate."""


def load(folder: Path) -> list[Question]:
    """The questions of every task whose JSON file is there."""
    paths = sorted((folder / "json").glob("*.json"))
    if not paths:
        raise BenchmarkError(f"{folder / 'json'}: no .json file; MVBench has one for each task there")
    for path in paths:
        if path.stem not in FOLDERS:
            raise BenchmarkError(f"{path}: no task of MVBench has this name; the tasks are {', '.join(FOLDERS)}")
    return [_question(folder, task, number, record) for task, number, record in read_tasks(paths)]


def _question(folder: Path, task: str, number: int, record: Record) -> Question:
    options = record.texts("candidates")
    return Question(
        key=f"{task}-{number}",
        video=_video(folder, task, record),
        text=record.text("question"),
        options=options,
        answer=record.letter_of_text("answer", options),
        category=task,
    )


def _video(folder: Path, task: str, record: Record) -> Video:
    start, end = record.optional_number("start"), record.optional_number("end")
    path = find_video((folder / "video" / FOLDERS[task],), record.text("video"))
    if task == FRAMES_TASK:
        return FrameFolder(path, FRAMES_FPS, start, end)
    return FileVideo(path, start, end)
