"""Follow a request with videos through the API server, and report what its pruning did and took."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_leading, require_source

_MODULE = "vllm.v1.engine.output_processor"
_TARGET = f"{_MODULE}:OutputProcessor"
_MARK = "_vllm_prune_reports"


def _module() -> Any:
    from vllm.v1.engine import output_processor

    return output_processor


def _input_processor() -> type[Any]:
    from vllm.v1.engine.input_processor import InputProcessor

    return InputProcessor


def _verify() -> None:
    processor, state = _module().OutputProcessor, _module().RequestState
    require_leading(processor.add_request, ("self", "request"), f"{_TARGET}.add_request")
    require_leading(processor.process_outputs, ("self", "engine_core_outputs"), f"{_TARGET}.process_outputs")
    calls = ("req_state.make_request_output(", "req_state.queue.put(request_output)")
    require_source(processor.process_outputs, calls, f"{_TARGET}.process_outputs")
    raised = ("if isinstance(output, Exception): raise output",)
    require_source(_module().RequestOutputCollector.get, raised, f"{_MODULE}:RequestOutputCollector.get")
    require_source(state.make_request_output, ("_new_request_output(",), f"{_MODULE}:RequestState.make_request_output")
    inputs = _input_processor()
    target = "vllm.v1.engine.input_processor:InputProcessor.process_inputs"
    require_leading(inputs.process_inputs, ("self", "request_id", "prompt", "params"), target)
    require_source(inputs.process_inputs, ("self.vllm_config.parallel_config",), target)


def _install() -> None:
    _wrap_inputs(_input_processor())
    _wrap_outputs(_module().OutputProcessor, _module().RequestState)


def _wrap_inputs(inputs: type[Any]) -> None:
    process_inputs = inputs.process_inputs

    @functools.wraps(process_inputs)
    def process(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.api.request_reports import begin

        begin(self.vllm_config, request_id, prompt, params)
        return process_inputs(self, request_id, prompt, params, *args, **kwargs)

    inputs.process_inputs = process


def _wrap_outputs(processor: type[Any], request_state: type[Any]) -> None:
    add_request, process_outputs = processor.add_request, processor.process_outputs
    make_request_output = request_state.make_request_output

    @functools.wraps(add_request)
    def add(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        from vllm_prune.serving.api.request_reports import queue

        add_request(self, request, *args, **kwargs)
        queue(request, self.request_states[request.request_id])

    @functools.wraps(process_outputs)
    def process(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.api.request_reports import finish, receive

        reported = receive(self.request_states, engine_core_outputs)
        result = process_outputs(self, engine_core_outputs, *args, **kwargs)
        finish(self.request_states, reported)
        return result

    @functools.wraps(make_request_output)
    def make(self: Any, *args: Any, **kwargs: Any) -> Any:
        from vllm_prune.serving.api.request_reports import report_of

        output, report = make_request_output(self, *args, **kwargs), report_of(self)
        if output is not None and report is not None:
            output.prune = report
        return output

    setattr(process, _MARK, True)
    processor.add_request, processor.process_outputs = add, process
    request_state.make_request_output = make


PATCH = Patch(
    name="server_request_reports",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "What the multimodal processor decided and what workers measured meet nowhere in vLLM: a request that is made "
        "of a processed prompt has no room for either, and neither has the output that answers it."
    ),
    how=(
        "Wraps the steps by which a prompt becomes a request, is queued, gets outputs and ends; a report goes along "
        "and hangs on every `RequestOutput` as `prune`. Requests without videos are not touched."
    ),
    upstream=("https://github.com/vllm-project/vllm/issues/45098",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().OutputProcessor.process_outputs, _MARK),
    verify=_verify,
    install=_install,
)
