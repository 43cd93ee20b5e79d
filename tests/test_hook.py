"""Overrides of vLLM's methods: each is marked, and one without an original is refused."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from vllm.multimodal.processing.inputs import ProcessorInputs

import vllm_prune.page
import vllm_prune.serving
from vllm_prune.hook import Hooked, MissingHookError, hook, is_hook, is_vllms

OTHERS = ("vllm_prune.bench.sweep.forcing",)


def our_classes() -> Iterator[type]:
    packages = (vllm_prune.serving, vllm_prune.page)
    names = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    for name in (*names, *OTHERS):
        module = importlib.import_module(name)
        yield from (found for found in vars(module).values() if isinstance(found, type) and found.__module__ == name)


def overriding_methods(cls: type) -> Iterator[tuple[type, str]]:
    for index, owner in enumerate(cls.__mro__):
        if owner.__module__.startswith("vllm_prune."):
            theirs = [base for base in cls.__mro__[index + 1 :] if is_vllms(base)]
            for name, attribute in vars(owner).items():
                function = getattr(attribute, "__func__", attribute)
                if callable(function) and not name.startswith("__") and any(name in vars(base) for base in theirs):
                    yield owner, name


def test_every_method_that_overrides_one_of_vllms_is_a_hook():
    found = {(owner, name) for cls in our_classes() for owner, name in overriding_methods(cls)}
    assert len(found) >= 18
    assert [f"{owner.__name__}.{name}" for owner, name in found if not is_hook(vars(owner)[name])] == []
    assert [owner.__name__ for owner, _ in found if not issubclass(owner, Hooked)] == []


def test_a_hook_without_an_original_is_refused_when_the_class_is_made():
    with pytest.raises(MissingHookError, match=r"Inputs\.get_media_hashes: none of vLLM's bases of Inputs has"):

        class Inputs(Hooked, ProcessorInputs):
            @hook
            def get_media_hashes(self): ...


class Mixin(Hooked):
    @staticmethod
    @hook
    def get_media_hashes(): ...


def test_a_mixin_is_checked_where_it_is_put_before_a_base_of_vllms():
    with pytest.raises(MissingHookError, match=r"Mixin\.get_media_hashes: none of vLLM's bases of Inputs has"):

        class Inputs(Mixin, ProcessorInputs): ...


def test_an_original_that_does_not_come_after_it_is_none():
    class Own(Hooked):
        @hook
        def get_mm_hashes(self): ...

    with pytest.raises(MissingHookError, match=r"Own\.get_mm_hashes"):

        class Inputs(ProcessorInputs, Own): ...
