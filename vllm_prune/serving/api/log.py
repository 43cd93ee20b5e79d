"""The verbose log (`--prune-log`): a block of lines for every request with videos, in the API server's log."""

from __future__ import annotations

from collections.abc import Iterator

from vllm.logger import init_logger

from vllm_prune.config import ATTENTION, NO_METHOD, QUESTION, PruneConfig
from vllm_prune.config.errors import shorten
from vllm_prune.serving.api.ends import DONE
from vllm_prune.serving.api.prompt_facts import IMAGE, VIDEO, PromptMedium
from vllm_prune.serving.api.report import ENCODED, ENCODER_CACHE, PREFIX_CACHE, UNKNOWN, WITHHELD, RequestReport

logger = init_logger("vllm.vllm_prune")

_LONGEST_ID = 200

_SOURCES = {
    ENCODED: "encoded now",
    ENCODER_CACHE: "from the encoder cache",
    PREFIX_CACHE: "KV blocks reused",
    WITHHELD: "encoded now or before (not told between values of `cache_salt`)",
    UNKNOWN: "not reached",
}


def write_log(request_id: str, report: RequestReport) -> None:
    """Logs a finished request."""
    logger.info("prune %s: %s", _in_one_line(request_id), "\n  ".join(describe(report)))


def _in_one_line(request_id: str) -> str:
    """A client may choose it, and must not write lines of its own into the log."""
    return shorten("".join(letter if letter.isprintable() else "?" for letter in request_id), _LONGEST_ID)


def describe(report: RequestReport) -> Iterator[str]:
    """What was found, pruned, reused and how long it took, line by line."""
    config = report.facts.config
    if report.state != DONE:
        yield f"state {report.state}: {report.failure or 'ended before it was answered'}"
    if VIDEO in report.facts.modalities:
        yield f"method {config.method}, preset {report.preset}, {_tokens(report, VIDEO)}"
    if IMAGE in report.facts.modalities:
        yield f"images: method {report.facts.config_of(IMAGE).method}, {_tokens(report, IMAGE)}"
    for modality in report.facts.modalities:
        media = zip(report.facts.numbered(modality), report.sources(modality), strict=True)
        for number, ((_, medium), source) in enumerate(media):
            yield f"{modality} {number}: {_describe_medium(report, medium, source)}"
    for modality in report.facts.modalities:
        of_images = " of images" if modality == IMAGE else ""
        yield f"importance{of_images}: {_importance(report.facts.config_of(modality), modality)}"
    kinds = " and ".join(report.facts.modalities)
    for layer, heads, rows, tokens in report.attention:
        yield f"attention at layer {layer}: {heads} heads x {rows} text rows x {tokens} {kinds} tokens"
    yield f"saved: {report.saved_blocks} KV blocks, {report.saved_bytes} bytes"
    yield f"prefix cache: {report.cached()} of {report.kept} {kinds} tokens reused"
    yield "times: " + ", ".join(f"{stage} {1000 * s:.1f} ms" for stage, s in report.stage_seconds().items())


def _tokens(report: RequestReport, modality: str) -> str:
    return f"{report.before_of(modality)} -> {report.kept_of(modality)} {modality} tokens"


def _describe_medium(report: RequestReport, medium: PromptMedium, source: str) -> str:
    counts = medium.counts
    assert counts is not None  # of a medium that a configuration is about
    steps = {"detected": counts.total, "after stage 1": counts.stage1, "entering the model": counts.entering}
    steps |= {f"after choice {i + 1}": left for i, left in enumerate(counts.layers)}
    frames = "" if medium.frames is None else "{} of {} frames; ".format(*medium.frames)
    tokens = ", ".join(f"{left} {step}" for step, left in steps.items())
    return (
        f"{frames}tokens {tokens}; {counts.encoded} cells to encode, {_SOURCES[source]}; kept at {medium.offset}.."
        f"{medium.offset + medium.length - 1} of the "
        f"prompt's {report.facts.prompt_len}"
    )


def _importance(config: PruneConfig, modality: str) -> str:
    if config.method == ATTENTION:
        text, heads, selector, quota = (config.attention_param(name) for name in ("text", "heads", "selector", "quota"))
        if config.needs_selector:
            return f"learned relevance to the question; {selector} over each {config.attention_param('scope')}"
        return (
            f"attention weights of the question on the {modality}'s tokens, {text} over text positions, then {heads} "
            f"over heads; {selector}, quota {quota}"
        )
    if config.method == QUESTION:
        relevance, selector, scope = (config.question_param(name) for name in ("relevance", "selector", "scope"))
        return f"{relevance} relevance to the question, before the first layer; {selector} over each {scope}"
    if config.method == NO_METHOD:
        if modality == IMAGE:
            return "none: cells that show what their neighbour shows are not encoded"
        return "none: " + ("tokens are merged by similarity" if config.stage1 else "every token stays")
    return f"by method {config.method}, without the question"
