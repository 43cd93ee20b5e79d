"""Small selectors and their files."""

from pathlib import Path

import torch

from vllm_prune.selector import Header, ModelIdentity, Selector, SelectorConfig, write_selector
from vllm_prune.selector.storage import probe_ids

WIDTH, GRID = 12, (3, 2, 2)
MODEL = ModelIdentity(
    architecture="Qwen2_5_VLForConditionalGeneration",
    hidden_size=WIDTH,
    num_layers=6,
    vocab_size=40,
    revision="abc",
    name="a/model",
)
TABLE = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(3))


def small_selector(kind: str = "match", width: int = WIDTH) -> Selector:
    torch.manual_seed(1)
    selector = Selector(SelectorConfig(kind=kind, width=width, hidden=8))
    for parameter in selector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return selector.eval()


def write_small(path: Path, kind: str = "match", **changes) -> Selector:
    selector = small_selector(kind)
    write_selector(
        path, selector, Header(**{"config": selector.config, "model": MODEL, **changes}), TABLE[probe_ids(40)]
    )
    return selector


def tokens_and_words(seed: int = 0, words: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, WIDTH, generator=generator), torch.randn(words, WIDTH, generator=generator)
