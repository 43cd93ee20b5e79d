"""Say which frame of a `video/jpeg` list is wrong and why."""

import base64
import functools
import io
from typing import Any

from vllm_prune.media.errors import UnusableVideo
from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.multimodal.media.video"
_TARGET = f"{_MODULE}:VideoMediaIO.load_base64"
_MARK = "_vllm_prune_explains_frames"
_KIND = "video/jpeg"


def _loader() -> Any:
    from vllm.multimodal.media.video import VideoMediaIO

    return VideoMediaIO


def _verify() -> None:
    require_leading(_loader().load_base64, ("self", "media_type", "data"), _TARGET)
    split = 'frame_parts = data.split(",", self.num_frames)[: self.num_frames]'
    require_source(_loader().load_base64, (f'if media_type.lower() == "{_KIND}":', split, "np.stack("), _TARGET)


def _install() -> None:
    original = _loader().load_base64

    @functools.wraps(original)
    def load_base64(self: Any, media_type: str, data: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, media_type, data, *args, **kwargs)
        except (ValueError, OSError) as error:
            if media_type.lower() == _KIND:
                most = self.num_frames if self.num_frames > 0 else None
                check_frame_list(data.split(",")[:most])
            raise error

    setattr(load_base64, _MARK, True)
    _loader().load_base64 = load_base64


def check_frame_list(frames: list[str]) -> None:
    """Raise UnusableVideo for the first frame, in base64, that is no picture or has another size than the one before.

    Looks at the pictures' headers only.
    """
    from PIL import Image

    if frames == [""]:
        raise UnusableVideo("the list of frames is empty")
    first: tuple[int, int] | None = None
    for number, frame in enumerate(frames):
        if not frame:
            raise UnusableVideo(f"frame {number} of the list is empty")
        try:
            size = Image.open(io.BytesIO(base64.b64decode(frame, validate=True))).size
        except (ValueError, OSError) as error:
            raise UnusableVideo(f"frame {number} of the list is no picture in base64") from error
        first = first or size
        if size != first:
            (width, height), (first_width, first_height) = size, first
            raise UnusableVideo(
                f"frame {number} of the list has {width}x{height} pixels and frame 0 has {first_width}x{first_height}"
            )


PATCH = Patch(
    name="server_frame_lists",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "Frames of several sizes, an empty list or a frame that is no picture are refused with NumPy's or Pillow's "
        "words (`all input arrays must have the same shape`, `cannot identify image file <_io.BytesIO ...>`), which "
        "name no frame."
    ),
    how="Wraps the method; where it raises, the list is looked through for the frame to blame (HTTP 4xx).",
    upstream=("https://github.com/vllm-project/vllm/pull/37301",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_loader().load_base64, _MARK),
    verify=_verify,
    install=_install,
)
