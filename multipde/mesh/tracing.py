"""The meshes of the convolutions of any module: along which axes of the input they run, and how far it is coarsened."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multipde.mesh.modes import copied, hooked
from multipde.mesh.operations import LOST, RULE_OF, Factor, Known, axes_of, broadcast, label, single

REWRITTEN = "weight rewritten at use"
NO_LAYER = "weight of no convolution of torch.nn"
FIXED = "its mesh does not follow the size of the images"
Meshes = dict[str, tuple[float, ...] | str]
"""The distances of the pixels by names of convolutions, or the reason why there are none."""
COMPUTING = ("forward", "_conv_forward")
"""The methods by which a convolution computes."""

_OF_TORCH = frozenset(vars(nn.Conv2d(1, 1, 1)))
_ANSWERS: WeakKeyDictionary[type, dict[tuple[tuple[str, Any], ...], bool]] = WeakKeyDictionary()
"""What `uses_own_weight` has found out about layers of a class with the same settings of their own."""


def trace_meshes(module: nn.Module, example: Tensor) -> Meshes:
    """For every convolution by name the distance of its pixels along each axis in pixels of the example, or a reason.

    The reason says why the convolution is no stencil on the mesh of the example, such as "not reached by the example".
    Weights that are convolved with and belong to no such layer are among the names, with the reason NO_LAYER.

    A copy of the module is run on the meta device, which computes only shapes, or where it is if that fails: in
    evaluation mode, and once more in training mode if that leaves layers out, such as auxiliary classifiers. Strides of
    convolutions, pools and slices multiply; views and permutations are followed index by index. Hooks are not called.
    It is run with an image of twice the size too: a convolution on maps of a fixed size, as behind
    ``Upsample(size=14)``, has the same mesh size for all images, and the reason FIXED.
    """
    try:
        return _traced(copied(module, hooks=False, shapes_only=True), example.to("meta"))
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError):
        return _traced(copied(module, hooks=False), example)


def tell_unmoved(reasons: Mapping[str, object]) -> None:
    """Warn of weights that are convolved with and that no conversion can move, see `trace_meshes`."""
    if names := [name for name, reason in reasons.items() if reason == NO_LAYER]:
        shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        warnings.warn(f"stencils that belong to no convolution of torch.nn stay as they are: {shown}", stacklevel=5)


def uses_own_weight(layer: _ConvNd) -> bool:
    """Whether a layer convolves with its weight as it is; a subclass of torch's is tried once."""
    if is_torchs_own(layer):
        return True
    own = {name: value for name, value in vars(layer).items() if name not in _OF_TORCH}
    if not all(isinstance(value, (bool, int, float, str, type(None))) for value in own.values()):
        return _is_seen_to_use(layer)  # the next layer of this class may have other methods, or parts
    answers, settings = _ANSWERS.setdefault(type(layer), {}), tuple(sorted(own.items()))
    if settings not in answers:
        answers[settings] = _is_seen_to_use(layer)
    return answers[settings]


def is_torchs_own(layer: _ConvNd) -> bool:
    """Whether a convolution computes as torch's does: neither its class nor the layer has other methods for that."""
    torchs = next(base for base in type(layer).__mro__ if base.__module__ == "torch.nn.modules.conv")
    inherited = all(getattr(type(layer), name) is getattr(torchs, name) for name in COMPUTING)
    return inherited and not any(name in vars(layer) for name in COMPUTING)


def _is_seen_to_use(layer: _ConvNd) -> bool:
    """Whether a copy of a layer, run on the meta device, convolves with its own weight as it is."""
    model = copied(layer, hooks=False, shapes_only=True)
    sizes = [2 * w * d + 8 for w, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    trace = _Trace(model, torch.zeros(2, layer.in_channels, *sizes, device="meta", dtype=layer.weight.dtype))
    with suppress(Exception):  # the forward function of a user can raise anything
        trace.run()
    return bool(trace.found)


def _traced(model: nn.Module, example: Tensor) -> Meshes:
    names = [name for name, layer in model.named_modules() if isinstance(layer, _ConvNd)]
    trace = _Trace(model.eval(), example)
    trace.run()
    found, called = _following(model, example, trace.found), trace.called
    if not set(names) <= set(found) | called:
        later = _Trace(model.train(), example.expand(max(2, len(example)), *example.shape[1:]))
        with suppress(Exception):  # what happens in training is not needed
            later.run()
        found, called = later.found | found, later.called | called
    why = {name: REWRITTEN if name in called else "not reached by the example" for name in names}
    unnamed = {name: reason for name, reason in found.items() if reason == NO_LAYER}
    return {name: found.get(name, why[name]) for name in names} | unnamed


def _following(model: nn.Module, example: Tensor, found: Meshes) -> Meshes:
    """The meshes that were found, with a reason for those that stay as they are where the images are twice as large."""
    doubled = _Trace(model, example.repeat(1, 1, *[2] * (example.dim() - 2)))
    with suppress(Exception):  # networks for images of one size alone
        doubled.run()
    fixed = []
    for name, mesh in found.items():
        other = doubled.found.get(name, FIXED)
        if isinstance(mesh, str) or isinstance(other, str):
            continue
        width = doubled.modules[name].kernel_size
        ratios = [a / b for a, b, w in zip(mesh, other, width, strict=True) if w > 1]
        if not all(2**-0.5 < ratio < 2**0.5 for ratio in ratios):  # sizes that are rounded make far less of it
            fixed.append(name)
    return found | dict.fromkeys(fixed, FIXED)


class _Trace(TorchDispatchMode):
    """Runs a model and labels every axis of every tensor by its factors; the labels are attributes of the tensors."""

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        self.model, self.example = model, example.clone()
        convs = [(name, m) for name, m in model.named_modules() if isinstance(m, _ConvNd)]
        self.names = {m.weight.untyped_storage()._cdata: (name, m.weight.shape) for name, m in reversed(convs)}
        self.others = {p.untyped_storage()._cdata: name for name, p in model.named_parameters()}
        self.modules: dict[str, _ConvNd] = dict(convs)
        self.found: Meshes = {}
        self.called: set[str] = set()
        self.known: Known = {}

    def run(self) -> None:
        own = [Factor(s, axis) for axis, s in enumerate(self.example.shape[2:])]
        label(self.example, [(Factor(s),) for s in self.example.shape[:2]] + [(f,) for f in own])
        self.known.update({(f.axis, f.size): 1.0 for f in own})
        names: dict[nn.Module, str] = {m: name for name, m in self.modules.items()}
        handles = (m.register_forward_pre_hook(lambda m, _: self.called.add(names[m])) for m in names)
        with hooked(handles), torch.no_grad(), self:
            self.model(self.example)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name == "convolution":
            self._find(args)
        if any(hasattr(t, "mesh_axes") for t in inputs):
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
            for out in outputs:
                axes = RULE_OF[name](self.known, out, args, kwargs or {}) if name in RULE_OF else broadcast(out, inputs)
                label(out, axes)
        return result

    def _find(self, args: Sequence[Any]) -> None:
        x, weight, transposed = args[0], args[1], args[6]
        place = weight.untyped_storage()._cdata
        name, shape = self.names.get(place, ("", None))
        if not name and place in self.others and max(weight.shape[2:]) > 1 and not transposed:
            self.found[self.others[place]] = NO_LAYER
        if name in self.found or shape != weight.shape or transposed:
            return
        axes, dim = [single(axis) for axis in axes_of(x)[2:]], self.example.dim() - 2
        wide = [(place, f) for place, (f, w) in enumerate(zip(axes, weight.shape[2:], strict=True)) if w > 1]
        if len(axes) != dim:
            self.found[name] = f"{len(axes)}-D, where the images are {dim}-D"
        elif any(f is not None and f.axis == LOST for _, f in wide):
            self.found[name] = "its mesh cannot be traced"
        elif any(f is None or f.axis != place for place, f in wide):
            self.found[name] = "not along the axes of the images"
        else:
            self.found[name] = tuple(f.stride if f is not None and f.axis >= 0 else 1.0 for f in axes)
