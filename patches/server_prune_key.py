"""Let requests carry `prune` in mm_processor_kwargs without trusting them with every other processor option."""

import functools
from typing import Any

from vllm_prune.patches.base import Patch
from vllm_prune.patches.checks import require_keywords, require_source

_MODULE = "vllm.renderers.online_renderer"
_TARGET = f"{_MODULE}:validate_request_mm_kwargs"
_MARK = "_vllm_prune_lets_prune_pass"
_KEY = "prune"


class _KnowsPrune:
    """Takes the place of `trust_request_mm_kwargs` on a server of a pruning variant, and is as true as that."""

    def __init__(self, trusted: bool, settings: Any, renderer: Any) -> None:
        self._trusted, self._settings, self._renderer = trusted, settings, renderer

    def __bool__(self) -> bool:
        return self._trusted

    def check(self, mm_processor_kwargs: dict[str, Any]) -> None:
        """Refuses a `prune` that the server does not know or allow, or the model cannot do.

        Whether or not the request has images or videos.
        """
        from vllm_prune.config import PruneConfigError
        from vllm_prune.serving.api.metrics import observe_refusal

        try:
            # Without a processor (text only), what depends on the model decides nothing.
            (self._renderer.mm_processor or self._settings).resolve(mm_processor_kwargs.get(_KEY))
        except PruneConfigError as error:
            observe_refusal(error)
            raise


def _module() -> Any:
    from vllm.renderers import online_renderer

    return online_renderer


def _verify() -> None:
    module = _module()
    used = ("mm_processor_kwargs", "trust_request_mm_kwargs")
    require_keywords(module.validate_request_mm_kwargs, used, _TARGET)
    passed_on = ("validate_request_mm_kwargs(", "trust_request_mm_kwargs=self.trust_request_mm_kwargs")
    for method in ("preprocess_chat", "preprocess_cmpl"):
        target = f"{_MODULE}:OnlineRenderer.{method}"
        require_source(getattr(module.OnlineRenderer, method), passed_on, target)
    names = ("renderer", "model_config", "trust_request_mm_kwargs")
    kept = tuple(f"self.{name} = {name}" for name in names)
    require_source(module.OnlineRenderer.__init__, kept, f"{_MODULE}:OnlineRenderer.__init__")


def _install() -> None:
    module = _module()
    module.validate_request_mm_kwargs = _wrap_check(module.validate_request_mm_kwargs)
    module.OnlineRenderer.__init__ = _wrap_init(module.OnlineRenderer.__init__)


def _wrap_check(original: Any) -> Any:
    @functools.wraps(original)
    def validate_request_mm_kwargs(*, mm_processor_kwargs: Any, trust_request_mm_kwargs: Any, **others: Any) -> None:
        if isinstance(trust_request_mm_kwargs, _KnowsPrune):
            trust_request_mm_kwargs.check(mm_processor_kwargs or {})
            mm_processor_kwargs = {key: value for key, value in (mm_processor_kwargs or {}).items() if key != _KEY}
        original(
            mm_processor_kwargs=mm_processor_kwargs,
            trust_request_mm_kwargs=bool(trust_request_mm_kwargs),
            **others,
        )

    setattr(validate_request_mm_kwargs, _MARK, True)
    return validate_request_mm_kwargs


def _wrap_init(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        from vllm_prune.serving.wire.architectures import is_variant

        original(self, *args, **kwargs)
        if is_variant(self.model_config.architecture):
            from vllm_prune.serving.wire.settings import read_settings

            settings = read_settings(self.model_config.hf_config)
            self.trust_request_mm_kwargs = _KnowsPrune(self.trust_request_mm_kwargs, settings, self.renderer)

    return __init__


PATCH = Patch(
    name="server_prune_key",
    target=_TARGET,
    process="API server",
    trigger=_MODULE,
    why=(
        "vLLM refuses every per-request mm_processor_kwargs unless the server runs with --trust-request-mm-kwargs, "
        "which also lets clients change frame sizes and decoders. What a request may ask of `prune` is bounded by our "
        "own --prune-override. Nobody looks at it in a request without a video."
    ),
    how=(
        "On a server of a pruning variant the key `prune` is left out of the check, and has one of its own; all other "
        "keys are refused as before. Servers of other models are not changed."
    ),
    upstream=("https://github.com/vllm-project/vllm/blob/v0.32.0/vllm/entrypoints/generate/base/protocol.py",),
    remove_when="vllm>=0.33",
    needed=lambda: True,
    applied=lambda: hasattr(_module().validate_request_mm_kwargs, _MARK),
    verify=_verify,
    install=_install,
)
