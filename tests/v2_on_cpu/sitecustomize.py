"""Read by every Python process whose PYTHONPATH names this folder: selects vLLM's V2 runner before vLLM is imported."""

import select_v2

select_v2.select()
