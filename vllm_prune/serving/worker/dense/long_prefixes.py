"""All dense prefixes of a worker that stretch over several steps: whose part of a step is whose, and when they go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from vllm_prune.selector import Selector
from vllm_prune.serving.wire.long_spans import LongSpan
from vllm_prune.serving.wire.selector_file import Place
from vllm_prune.serving.worker.dense.decoder_view import DecoderView
from vllm_prune.serving.worker.dense.dense_layers import Workshop
from vllm_prune.serving.worker.dense.drop import RowDropper
from vllm_prune.serving.worker.dense.long_finish import LongFinish
from vllm_prune.serving.worker.dense.long_prefix import LongPrefix
from vllm_prune.serving.worker.dense.paged_cache import PagedCache, step_metadata
from vllm_prune.serving.worker.dense.scratch import ScratchCaches
from vllm_prune.serving.worker.dense.state_rows import StateRows
from vllm_prune.serving.worker.dense.step import DenseRequest, LongPart
from vllm_prune.serving.worker.dense.step_run import Entering


class LongPrefixes:
    """Those under way, by the block that holds their first token."""

    def __init__(
        self, decoder: DecoderView, paged: PagedCache, states: StateRows, selectors: Mapping[Place, Selector]
    ) -> None:
        self._decoder, self._paged, self._states, self._selectors = decoder, paged, states, selectors
        self._spans: Sequence[LongSpan] = ()
        self._prefixes: dict[int, LongPrefix] = {}

    def begin_step(self, spans: Sequence[LongSpan]) -> None:
        """Gives up all but those that the scheduler has under way: the rest were aborted, preempted or have ended."""
        self._spans = spans
        self._prefixes = {span.block: found for span in spans if (found := self._prefixes.get(span.block)) is not None}

    @property
    def num_bytes(self) -> int:
        """That they hold between steps."""
        return sum(prefix.num_bytes for prefix in self._prefixes.values())

    def run(self, part: LongPart, entering: Entering, most_rows: int) -> LongFinish | None:
        """Runs a part; what it comes to, if it was the last one."""
        span = self._span_of(part)
        if part.context == span.start:
            self._prefixes[span.block] = LongPrefix(span, self._decoder, entering.embeds)
        prefix = self._prefixes[span.block]
        ahead = DenseRequest(part.index, span.start, part.batch_start, part.batch_end, span.rows, [])
        prefix.add(part, entering, ScratchCaches(self._paged, [ahead]), most_rows)
        if not prefix.is_complete:
            return None
        del self._prefixes[span.block]
        step = prefix.whole(part.index)
        dropper = RowDropper(step, self._decoder, self._paged, self._selectors)
        scratch = ScratchCaches(self._paged, step.requests)
        return LongFinish(prefix, step, Workshop(self._decoder, dropper, scratch, self._states, most_rows), self._paged)

    def _span_of(self, part: LongPart) -> LongSpan:
        attention = self._decoder.attention[0]
        size = self._paged.layout(attention).block_size
        table = step_metadata(attention).block_table[part.index]
        with gpu_sync_allowed():
            blocks = table[: -(-part.context // size) + 1].tolist()
        for span in self._spans:
            # The kernels' blocks may be smaller than vLLM's.
            if span.start <= part.context and blocks[span.start // size] * size // span.block_size == span.block:
                return span
        raise RuntimeError(
            f"a part of a dense prefix at token {part.context} of its prompt is none that the scheduler has under way; "
            f"report it to vllm-prune"
        )
