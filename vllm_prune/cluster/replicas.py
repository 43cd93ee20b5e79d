"""Several servers behind one endpoint: an autoscaling application of Ray Serve's own LLM deployment.

`build` is what a Ray Serve configuration (`import_path: vllm_prune.cluster.replicas:build`) and
`launch/ray/replicas.py` call. Each replica is one vLLM engine of the pruning variant, on one or, with tensor
parallelism, several GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from vllm_prune.config import PruneConfig
from vllm_prune.embedded import resolve

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_INGRESS = "vllm_prune.cluster.ingress:MediaAffinityIngress"
_HEALTH_CHECK_PERIOD_S = 3
"""Ray Serve replaces a replica after three failed checks; requests sent to it until then fail."""


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """What to serve, and how often.

    Attributes:
        model: Folder (the same on every node) or hub name, or that of an embedded model.
        name: The name that requests give; default: `model`.
        prune: Preset or object, as for `vllm-prune serve --prune`.
        override: What a request may change: none, tighten, any.
        min_replicas: Replicas that always run, ≥ 1.
        max_replicas: Replicas at the most, ≥ `min_replicas`.
        target_requests: Unfinished requests per replica above which Ray Serve starts another, ≥ 1.
        max_requests: Unfinished requests that a replica takes; those above go to the next one on the ring.
        tensor_parallel_size: GPUs (CPUs with `cpu`) of one replica.
        cpu: Replicas compute on CPUs.
        engine: Further arguments of vLLM's engine and front end, by their Python names (`max_model_len`).
        env: Environment variables of the replicas.
    """

    model: str
    name: str = ""
    prune: str | dict[str, Any] = "default"
    override: str = "tighten"
    min_replicas: int = 1
    max_replicas: int = 2
    target_requests: int = 16
    max_requests: int = 64
    tensor_parallel_size: int = 1
    cpu: bool = False
    engine: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError for the first number out of its range, or a pruning configuration that is wrong."""
        for name in ("min_replicas", "target_requests", "tensor_parallel_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        for name, least in (("max_replicas", "min_replicas"), ("max_requests", "target_requests")):
            if getattr(self, name) < getattr(self, least):
                raise ValueError(f"{name}={getattr(self, name)}: must be {least}={getattr(self, least)} or more")
        PruneConfig.parse(self.prune)

    @classmethod
    def parse(cls, given: dict[str, Any]) -> ReplicaOptions:
        """Read the options from a dictionary.

        Raises:
            ValueError: A key is unknown, `model` is missing, or a value is wrong.
        """
        known = [entry.name for entry in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(known)}")
        if not given.get("model"):
            raise ValueError("model: missing; give a folder that every node has, or a hub name")
        return cls(**given)


def build(given: dict[str, Any]) -> Any:
    """The Ray Serve application for `ReplicaOptions` given as a dictionary.

    Raises:
        ValueError: An option is wrong, or the model has no pruning variant.
    """
    return build_application(ReplicaOptions.parse(given))


def build_application(options: ReplicaOptions) -> Any:
    """The Ray Serve application: an ingress that knows videos, and the replicas behind a consistent-hash router."""
    from ray.serve.llm import LLMServingArgs, build_openai_app

    serving = {"llm_configs": [_llm_config(options)], "ingress_cls_config": {"ingress_cls": _INGRESS}}
    return build_openai_app(LLMServingArgs.model_validate(serving))


def _llm_config(options: ReplicaOptions) -> Any:
    from ray.serve.config import RequestRouterConfig
    from ray.serve.llm import LLMConfig

    model = resolve(options.model)
    hardware: dict[str, Any] = {"accelerator_config": {"kind": "cpu"}} if options.cpu else {}
    if options.env:
        hardware["runtime_env"] = {"env_vars": options.env}
    return LLMConfig(
        model_loading_config={"model_id": options.name or options.model, "model_source": model},
        engine_kwargs=_engine_kwargs(model, options),
        deployment_config={
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": options.max_replicas,
                "target_ongoing_requests": options.target_requests,
            },
            "max_ongoing_requests": options.max_requests,
            "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
            "request_router_config": RequestRouterConfig(request_router_class=_ROUTER),
        },
        **hardware,
    )


def _engine_kwargs(model: str, options: ReplicaOptions) -> dict[str, Any]:
    from vllm_prune.engine import engine_args

    arguments = engine_args(
        model,
        options.prune,
        override=options.override,  # type: ignore[arg-type]  # checked there
        tensor_parallel_size=options.tensor_parallel_size,
        # Without prompt token details, a response cannot tell how many tokens its videos kept.
        **{"enable_prompt_tokens_details": True, **options.engine},
    )
    del arguments["model"]  # Ray Serve passes it on itself
    return arguments
