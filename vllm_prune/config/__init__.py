"""What to prune: presets, parsing and validation, with no model and no vLLM.

A configuration comes from three places, each of which accepts a preset's name, a JSON object or a mapping: the server's
`--prune` flag, `PruneConfig.parse` in Python, and the `prune` key of a request's `mm_processor_kwargs`. Whatever a
request brings is checked here, before the engine hears of it.
"""

from vllm_prune.config.errors import PruneConfigError as PruneConfigError
from vllm_prune.config.errors import brief as brief
from vllm_prune.config.errors import shorten as shorten
from vllm_prune.config.frames import FramesConfig as FramesConfig
from vllm_prune.config.image import ImageConfig as ImageConfig
from vllm_prune.config.image import check_parts as check_parts
from vllm_prune.config.methods import ATTENTION as ATTENTION
from vllm_prune.config.methods import ATTENTION_PARAMS as ATTENTION_PARAMS
from vllm_prune.config.methods import NO_METHOD as NO_METHOD
from vllm_prune.config.methods import QUESTION as QUESTION
from vllm_prune.config.parsing import OverridePolicy as OverridePolicy
from vllm_prune.config.parsing import check_override_policy as check_override_policy
from vllm_prune.config.parsing import preset as preset
from vllm_prune.config.presets import DEFAULT_KEEP_RATIO as DEFAULT_KEEP_RATIO
from vllm_prune.config.presets import PRESETS as PRESETS
from vllm_prune.config.prune_config import PruneConfig as PruneConfig
from vllm_prune.config.stage1 import Stage1Config as Stage1Config
