"""Activation checkpointing by name patterns (Chen et al. 2016, arXiv 1604.06174): keep a segment's input, recompute its inside.

Of n blocks in a row, each with an input of b bytes and an inside of a bytes, segments of k blocks keep (n / k) b bytes from forward to
backward, and backward needs k a more at a time: least for k = sqrt(n b / a), at the price of a second forward for any k.

A recomputation repeats its first run: it begins with the same random state and the same buffers (BatchNorm's running statistics, the
vectors of spectral norm), and what it does to them is dropped, so that they move once a step as without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.errors import UserError
from components.networks.chain import Chain
from components.networks.invertible import InvertibleChain


def recompute(model: nn.Module, patterns: tuple[str, ...], length: int) -> list[list[str]]:
    """Makes the modules whose qualified names match a pattern recompute their activations, in segments of up to `length` blocks.

    Blocks share a segment where they follow one another in an `nn.Sequential`, a `Chain` or an `InvertibleChain`, which must be called as a
    whole; any other match is a segment of its own. Returns the names of the blocks of each segment. In a pattern `*` stands for anything
    but a dot: `blocks.*` are the blocks, not what is inside them.

    Raises UserError when the model has no patterns, and ValueError when a pattern matches nothing or a match lies inside another.
    """
    if not patterns:
        raise UserError(f"recompute={length}: {type(model).__name__} names no blocks to recompute; set recompute=0")
    children: dict[str, list[str]] = {}  # of each parent, those that match
    for name in _matches(model, patterns):
        path, _, child = name.rpartition(".")
        children.setdefault(path, []).append(child)
    segments: list[list[str]] = []
    changed: set[nn.Module] = set()  # a module with several names is changed once
    for path, matched in children.items():
        parent = model.get_submodule(path)
        runs = _runs(parent, matched, length) if _is_chain(parent) else [[child] for child in matched]
        segments += [[f"{path}.{child}".lstrip(".") for child in run] for run in runs if run[0] in matched]
        if not _is_chain(parent):
            alone = {parent.get_submodule(child) for child in matched} - changed
            for module in alone:
                module.forward = partial(_twice, module, module.forward)
            changed |= alone
        elif parent not in changed:
            in_turn = _invertible_in_turn if isinstance(parent, InvertibleChain) else _in_turn
            parent.forward = partial(in_turn, [_segment(parent, run, run[0] in matched) for run in runs])
            changed.add(parent)
    return segments


def _matches(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in patterns:
        if not any(_match(name, pattern) for name in names):
            raise ValueError(f"recompute pattern {pattern!r} matches no module; modules: {', '.join(filter(None, names))}")
    matches = [name for name in names if any(_match(name, pattern) for pattern in patterns)]
    inner = [a for a in matches for b in matches if a.startswith(b + ".")]
    if inner:
        raise ValueError(f"recompute patterns match {inner[0]!r} inside another match; it would be computed three times")
    return matches


def _match(name: str, pattern: str) -> bool:
    parts, globs = name.split("."), pattern.split(".")
    return len(parts) == len(globs) and all(map(fnmatchcase, parts, globs))


def _is_chain(module: nn.Module) -> bool:
    """Whether all that the module does is to run its children one after another."""
    return type(module).forward in (nn.Sequential.forward, Chain.forward, InvertibleChain.forward)


def _runs(parent: nn.Module, matched: Sequence[str], length: int) -> list[list[str]]:
    """The children of a chain in order: those that match in runs of up to `length`, each of the others alone."""
    runs: list[list[str]] = []
    for child in parent._modules:  # unlike `named_children`, a block that comes again each time it does
        if runs and child in matched and runs[-1][0] in matched and len(runs[-1]) < length:
            runs[-1].append(child)
        else:
            runs.append([child])
    return runs


def _segment(parent: nn.Module, run: list[str], recomputed: bool) -> Callable[..., Any]:
    children = (parent.get_submodule(child) for child in run)
    blocks = InvertibleChain(*children) if isinstance(parent, InvertibleChain) else Chain(*children)
    forward = blocks.onward if isinstance(blocks, InvertibleChain) else blocks.forward
    return partial(_twice, blocks, forward) if recomputed else forward


def _in_turn(segments: list[Callable[..., Any]], x: Tensor, *extra: Any) -> Any:
    for segment in segments:
        x = segment(x, *extra)
    return x


def _invertible_in_turn(segments: list[Callable[..., Any]], x: Tensor, *extra: Any) -> Any:
    log_det = x.new_zeros(len(x))
    for segment in segments:
        x, log_det = segment(x, log_det, *extra)
    return x, log_det


def _twice(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs the `forward` of `module` and keeps its arguments alone; backward runs it again."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    buffers = [
        (owner, name, buffer) for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False)
    ]
    before = {buffer: buffer.clone() for _, _, buffer in buffers}
    has_run = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal has_run
        if has_run:
            # Copies once more: a graph that is kept may be run through again.
            with _replaced(buffers, {buffer: value.clone() for buffer, value in before.items()}):
                return forward(*args, **kwargs)
        has_run = True
        return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)


@contextmanager
def _replaced(buffers: list[tuple[nn.Module, str, Tensor]], values: dict[Tensor, Tensor]) -> Iterator[None]:
    """In the block, `values` are in the places of `buffers`."""
    now = [getattr(owner, name) for owner, name, _ in buffers]
    try:
        for owner, name, buffer in buffers:
            setattr(owner, name, values[buffer])
        yield
    finally:
        for (owner, name, _), value in zip(buffers, now, strict=True):
            setattr(owner, name, value)
