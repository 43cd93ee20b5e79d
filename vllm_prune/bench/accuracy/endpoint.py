"""Asking any OpenAI-compatible server, with videos and pictures as data URLs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_prune.bench.accuracy.asking import Answer, Reply, Task, request_config, to_answer
from vllm_prune.bench.accuracy.pictures import modality_of
from vllm_prune.bench.throughput.configurations import Configuration
from vllm_prune.bench.throughput.errors import BenchmarkError


@dataclass
class Endpoint:
    """A server.

    `stock` sends requests as they are, so it measures what the server does by itself; a pruning configuration goes with
    each request, for which the server must be one of vllm-prune with `--prune-override any`.

    Args:
        url: Of its API, as in http://127.0.0.1:8000/v1.
        model: Name of the model there; None: the first one that the server names.
        concurrency: Requests at a time.
        max_tokens: Of an answer.
        api_key: Its key.
    """

    url: str
    model: str | None
    concurrency: int
    max_tokens: int
    api_key: str = "EMPTY"

    @cached_property
    def _client(self) -> Any:
        import openai

        return openai.OpenAI(base_url=self.url, api_key=self.api_key)

    @cached_property
    def served_model(self) -> str:
        """The model that is asked."""
        if self.model is not None:
            return self.model
        with self._explained("naming its models"):
            try:
                return str(self._client.models.list().data[0].id)
            except (AttributeError, IndexError, TypeError) as error:  # the client takes any answer with status 200
                raise BenchmarkError(
                    f"{self.url} names no model: no OpenAI-compatible API there; give --url http://HOST:PORT/v1"
                ) from error

    def groups(self, configurations: Sequence[Configuration]) -> list[list[Configuration]]:
        """All of them together; vLLM's EVS has no per-request switch."""
        for configuration in configurations:
            if configuration.evs_rate is not None:
                raise BenchmarkError(
                    f"--prune {configuration.name}: EVS is a setting of a whole server; start one with "
                    f"--video-pruning-rate {configuration.evs_rate}, and ask it with --url and --prune stock"
                )
        return [list(configurations)]

    def describe(self) -> dict[str, Any]:
        return {"url": self.url, "model": self.served_model, "max_tokens": self.max_tokens}

    @contextlib.contextmanager
    def open(self, group: Sequence[Configuration]) -> Iterator[Endpoint]:
        yield self

    def ask(self, batches: Iterable[Sequence[Task]]) -> Iterator[list[Answer]]:
        """Answers, one at a time, in the order in which they come."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            for batch in batches:
                urls = {task.question.video.key: task.question.video.data_url() for task in batch}
                asked = {pool.submit(self._reply, task, urls): task for task in batch}
                try:
                    for future in as_completed(asked):
                        yield [to_answer(asked[future], future.result())]
                except BaseException:
                    _cancel(asked)
                    raise

    def _reply(self, task: Task, urls: Mapping[str, str]) -> Reply:
        question, config = task.question, task.configuration.config
        modality = modality_of(question.video)
        content = [
            {"type": f"{modality}_url", f"{modality}_url": {"url": urls[question.video.key]}},
            {"type": "text", "text": question.prompt()},
        ]
        prune = None if config is None else {"mm_processor_kwargs": {"prune": request_config(config, question)}}
        with self._explained(f"asked {question.key!r} with --prune {task.configuration.name}"):
            completion = self._client.chat.completions.create(
                model=self.served_model,
                messages=[{"role": "user", "content": content}],
                max_completion_tokens=self.max_tokens,
                temperature=0.0,
                extra_body=prune,
            )
        return self._read(completion, task.configuration, modality)

    def _read(self, completion: Any, configuration: Configuration, modality: str) -> Reply:
        details = completion.usage.prompt_tokens_details
        counts = (getattr(details, "multimodal_tokens", None) or {}) if details else {}
        config = configuration.config
        if config is not None and not config.keeps_everything and f"{modality}_before_pruning" not in counts:
            raise BenchmarkError(
                f"{self.url} does not say that it pruned (--prune {configuration.name}): start it with "
                "`vllm-prune serve MODEL --prune-override any`, or ask it as it is with --prune stock"
            )
        said = completion.choices[0].message.content or ""
        return Reply(said, completion.usage.prompt_tokens, counts.get(modality))

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.APIConnectionError as error:
            raise BenchmarkError(f"no server at {self.url} ({error}); start one with `vllm-prune serve`") from error
        except openai.APIStatusError as error:
            raise BenchmarkError(f"{self.url} refused, {doing}: {error.message}") from error


def _cancel(futures: Iterable[Future[Reply]]) -> None:
    for future in futures:
        future.cancel()
