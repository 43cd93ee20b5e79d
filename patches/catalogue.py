"""Write the catalogue of patches, README.md in this folder: `python -m vllm_prune.patches.catalogue`."""

from pathlib import Path

from vllm_prune.patches.base import Patch
from vllm_prune.patches.registry import load_patches

CATALOGUE = Path(__file__).with_name("README.md")

_HEADER = """\
# Patches

Changes to vLLM and its companions, made in memory when a process starts; nothing on disk is touched. Each is applied
once, only where it is needed, and refuses with an error if its target no longer looks as expected. `vllm-prune doctor`
shows which are in force. In the lists below, `remove_when` is the lowest supported vLLM at which a patch must be looked
at again (a test fails then).

Generated from the records by `python -m vllm_prune.patches.catalogue`; a test keeps it in step.
"""


def render() -> str:
    """Render the catalogue as Markdown."""
    return "\n".join([_HEADER, *(_render_patch(patch) for patch in load_patches())])


def _render_patch(patch: Patch) -> str:
    upstream = ", ".join(f"<{link}>" for link in patch.upstream)
    when = f"after the import of `{patch.trigger}`" if patch.trigger else "at interpreter start"
    return f"""\
## {patch.name}

- **Target:** `{patch.target}` ({patch.library})
- **Where:** {patch.process}; {when}
- **Why:** {patch.why}
- **How:** {patch.how}
- **Upstream:** {upstream}
- **remove_when:** `{patch.remove_when}`
"""


if __name__ == "__main__":
    CATALOGUE.write_text(render())
