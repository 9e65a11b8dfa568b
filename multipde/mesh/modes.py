"""Modules in evaluation mode, copies of modules that deepcopy alone cannot make, and wrappers around modules."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

M = TypeVar("M", bound=nn.Module)

WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Names of classes, which would cost an import each, and where they hold the network."""


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Within the context tensors are made on the CPU, whatever ``torch.set_default_device`` has said, and can be
    trained later, even under ``torch.inference_mode``."""
    with ExitStack() as contexts:
        if torch.is_inference_mode_enabled():
            contexts.enter_context(torch.inference_mode(False))
            contexts.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            contexts.enter_context(torch.device("cpu"))  # a context of this thread alone
        yield


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put all submodules in evaluation mode within the context; afterwards each has its own training flag again."""
    training = {m: m.training for m in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for m, flag in training.items():
            m.training = flag


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within the context the hooks of these handles are called; a generator may register them one by one."""
    with ExitStack() as registered:
        for handle in handles:
            registered.callback(handle.remove)
        yield


def first_input(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """What a hook sees as the input of a layer, which may be called by ``layer(x)`` or ``layer(input=x)``; None if
    there is none."""
    return inputs[0] if inputs else next(iter(named.values()), None)


def copied(
    module: M, *, hooks: bool = True, shapes_only: bool = False, given: Mapping[nn.Module, nn.Module] | None = None
) -> M:
    """A deep copy of a module, also of one whose weights are computed by a hook, such as ``nn.utils.weight_norm``.

    Args:
        hooks: copy the hooks of users too; those of torch, which compute weights, are always copied.
        shapes_only: put the copy on the meta device, where it needs no memory.
        given: copies of submodules that are there already.

    Raises:
        ValueError: a function of the user's stands in place of the ``forward`` of a submodule: it would go on calling
            the module that is copied.
    """
    memo: dict[int, Any] = {id(old): new for old, new in (given or {}).items()}
    for name, m in module.named_modules():
        _check_forward(m, name)
        for t in (*m._parameters.values(), *m._buffers.values()):
            if shapes_only and t is not None and not is_lazy(t):
                moved = t.detach().to("meta")
                memo[id(t)] = nn.Parameter(moved, t.requires_grad) if isinstance(t, nn.Parameter) else moved
        for own in vars(m).values():  # a module has a dozen empty ones, which deepcopy takes long for
            if type(own) is OrderedDict and not own:
                memo[id(own)] = OrderedDict()
        for own in () if hooks else (m._forward_hooks, m._forward_pre_hooks):
            kept = [(key, hook) for key, hook in own.items() if type(hook).__module__.startswith("torch.nn.utils")]
            memo[id(own)] = OrderedDict(kept)
    with torch.inference_mode(False), _DetachedResults(shapes_only):  # so that the copy can be trained
        return copy.deepcopy(module, memo)


class _DetachedResults(TorchFunctionMode):
    """Within the context deepcopy copies results of computations, too, which it refuses otherwise: without history."""

    def __init__(self, shapes_only: bool):
        super().__init__()
        self.shapes_only = shapes_only

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        return args[0].detach().to("meta") if self.shapes_only else args[0].detach().clone()


def _check_forward(module: nn.Module, name: str) -> None:
    """Raise ValueError for a function in place of the method ``forward`` that holds a module, as compiled ones do."""
    own = vars(module).get("forward")
    if isinstance(own, FunctionType) and own.__closure__:
        what = f"{type(module).__name__}{f' {name!r}' if name else ''}"
        raise ValueError(
            f"forward must be the method of its module where that is copied, got {own.__qualname__} in place of that "
            f"of {what}; type del module.forward, and compile or wrap the result instead"
        )


def check_unshared(module: nn.Module, weights: Iterable[Tensor]) -> None:
    """Raise ValueError if one of these weights, which are to change, stands in several places of a module, as the same
    parameter or as others in the same memory."""

    def place_of(p: Tensor) -> int:
        has_memory = type(p) in (Tensor, nn.Parameter) and not p.is_meta and p.numel() > 0
        return p.data_ptr() if has_memory else id(p)

    places: dict[int, list[str]] = {}
    for name, m in module.named_modules():
        for leaf, p in m._parameters.items():
            place = f"{name}.{leaf}".replace("parametrizations.weight.original", "weight").removeprefix(".")
            if p is not None:
                places.setdefault(place_of(p), []).append(place.removesuffix(".weight"))
    for weight in weights:
        if len(found := places.get(place_of(weight), [])) > 1:
            raise ValueError(f"layers must not share a weight, got {found[0]!r} and {found[1]!r} with the same one")


def unwrapped(module: nn.Module) -> nn.Module:
    """The network in a compiled module of ``torch.compile`` or a wrapper that computes on several devices."""
    for kind in ("OptimizedModule", "DistributedDataParallel", "DataParallel"):
        if any(base.__name__ == kind for base in type(module).__mro__):
            return unwrapped(getattr(module, WRAPPERS[kind]))
    return module


def check_unwrapped(module: nn.Module) -> None:
    """Raise ValueError for the wrappers of torch, which hold what they have seen of a network before it changes."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("module must be changed before it is scripted or traced, got a ScriptModule")
    for kind, inner in WRAPPERS.items():
        if any(base.__name__ == kind for base in type(module).__mro__):
            raise ValueError(
                f"module must be changed before it is wrapped, got {kind}; pass its .{inner}, and wrap it again"
            )


def averaged(module: nn.Module) -> nn.Module | None:
    """The network in an ``AveragedModel`` of torch, None for any other module."""
    is_average = any(base.__name__ == "AveragedModel" for base in type(module).__mro__)
    return module.module if is_average else None  # pyright: ignore[reportReturnType]
