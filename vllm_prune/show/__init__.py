"""Pictures of what was kept of a video: contact sheet, page, film. From a trace or by running the model."""

from vllm_prune.show.cells import Cells as Cells
from vllm_prune.show.cells import map_cells as map_cells
from vllm_prune.show.errors import ShowError as ShowError
from vllm_prune.show.story import Panel as Panel
from vllm_prune.show.story import Story as Story
from vllm_prune.show.trace_file import read_trace as read_trace
