"""Small repairs to vLLM and its companions, one file each; README.md in this folder is their generated catalogue.

Importing this package must cost nothing, since it happens at every interpreter start (startup.py says why).
"""


def apply_all() -> None:
    """Apply every patch this process needs, now or when its target is imported. Repeating the call is harmless.

    Raises:
        PatchError: a target that is already imported does not look as its patch expects.
    """
    from vllm_prune.patches.registry import load_patches

    for patch in load_patches():
        patch.arm()
