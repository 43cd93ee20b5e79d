"""PruneVid's three stages and greedy decoding on Hugging Face modules: what serving is compared with.

Written for clarity, with one prompt, plain loops and attention spelled out in float32. It shares with the product only
what has no vLLM in it: `vllm_prune.config`, `.budget` and `.methods`.

    model = load_model(folder)
    prompt = to_prompt(processor, text, videos=[(frames, metadata)])  # oracle.from_vllm
    result = run_oracle(model, prompt, PruneConfig.parse("default"), max_new_tokens=8)

    prompt.py      what goes in
    vision.py      features of each medium; stage 1 and the query-free methods
    positions.py   vLLM's M-RoPE rule
    rows.py        the prompt as rows of the language model
    spans.py       which part of the prompt is dense
    decoder.py     decoder layers over an explicit cache of keys and values
    importance.py  stage 2: attention to importance to kept tokens
    prefill.py     stages 2 and 3 along the prompt
    run.py         all of it, then greedy decoding
    masked.py      the same by masking, with Hugging Face's own layers: checks the oracle itself
"""

from .prompt import Medium as Medium
from .prompt import Prompt as Prompt
from .run import OracleResult as OracleResult
from .run import load_model as load_model
from .run import run_oracle as run_oracle
