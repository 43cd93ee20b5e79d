"""Everything that touches vLLM, by the process that runs it; `tests/test_rooms.py` keeps it so.

    families/   one file a model family, on top of the others
    api/        API server
    core/       engine core
    worker/     every rank
    ray/        vLLM's Ray executor
    wire/       what crosses between the processes; `api`, `core` and `worker` import it, and nothing of each other

`config_hook.py`, `combinations.py` and `refusals.py` run before there are processes, `parent_watch.py` in each that has
a parent.
"""
