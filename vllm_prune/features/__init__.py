"""Features of videos from a server of features (`vllm-prune serve MODEL --runner pooling`), for other models.

    client = FeaturesClient("http://localhost:8000", config={"method": "uniform", "target_token_num": 64}, pad=True)
    features = client.get("clip.mp4", "Where does the ball go?")
    features.tokens, features.mask, features.cells, features.seconds, features.text

Imports no vLLM.
"""

from vllm_prune.features.client import FeaturesClient as FeaturesClient
from vllm_prune.features.errors import FeaturesError as FeaturesError
from vllm_prune.features.result import Features as Features
