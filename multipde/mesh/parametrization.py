"""Convolutions whose stencils know their mesh: the β basis as a parametrization of any Conv1d/2d/3d."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from multipde.mesh.separable import per_axis
from multipde.mesh.stencil import REACTIONS, StencilBasis, check_mesh_size

COORDINATES = ("stencil", "beta")


class StencilParametrization(nn.Module):
    """The stencil as a function of a parameter p on a reference mesh and of the present mesh.

        W(h) = A(h/h_ref) S p,    S = A(1)⁻¹ for coordinates "stencil",  S = I for coordinates "beta"

    With "stencil" p is the stencil on the reference mesh, so at h = h_ref nothing changes and nothing is computed; with
    "beta" it holds dimensionless coefficients. Both are well conditioned near the reference; raw β in physical units is
    not (the condition number of A⊗A is 5e10 at h = 1/224), so it is a view, see `coefficients`.

    Both mesh sizes are those of the network's input; the layer's own are ``stride`` times as large. They travel in the
    state dict as a float64 tensor; loading one that was saved on another mesh moves the layer there, with a warning.

    Args:
        width: taps per axis.
        mesh_size: of the network's input, per axis.
        reference: mesh size of the network's input to which p belongs, per axis.
        stride: distance of this layer's taps in units of the input's mesh, per axis.

    Shape:
        - p, W: (out channels, in channels / groups, *width)
    """

    matrix: Tensor

    def __init__(
        self,
        width: Sequence[int],
        mesh_size: Sequence[float],
        reference: Sequence[float],
        stride: Sequence[float],
        coordinates: str = "stencil",
        reaction: str = "121",
    ):
        super().__init__()
        if coordinates not in COORDINATES:
            raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}")
        check_mesh_size(mesh_size)
        check_mesh_size(reference, "reference")
        self.width, self.stride = tuple(width), tuple(stride)
        self.reference = tuple(float(h) for h in reference)
        self.coordinates, self.reaction = coordinates, reaction
        self.unit_basis = StencilBasis(self.width, len(self.width), 1.0, reaction)
        self.register_buffer("matrix", torch.empty(0), persistent=False)
        self.move(mesh_size, self.reference)

    def move(self, mesh_size: Sequence[float], reference: Sequence[float]) -> None:
        """Put the layer on another mesh, and its parameter on another reference; p stays as it is."""
        check_mesh_size(mesh_size)
        self.mesh_size, self.reference = tuple(float(h) for h in mesh_size), tuple(float(h) for h in reference)
        self.is_identity = self.coordinates == "stencil" and self.mesh_size == self.reference
        self._compute_matrix()

    def _compute_matrix(self) -> None:
        ratio = [h / ref for h, ref in zip(self.mesh_size, self.reference, strict=True)]
        matrix = StencilBasis(self.width, len(self.width), ratio, self.reaction).matrix
        if self.coordinates == "stencil":
            matrix = matrix @ torch.linalg.inv(self.unit_basis.matrix)
        self.matrix = matrix.to(self.matrix.device, self.matrix.dtype)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._compute_matrix()  # rounded from float64 in the new precision
        return self

    def basis(self) -> StencilBasis:
        """The basis in physical units on the layer's present mesh."""
        h = [h * s for h, s in zip(self.mesh_size, self.stride, strict=True)]
        return StencilBasis(self.width, len(self.width), h, self.reaction)

    def forward(self, p: Tensor) -> Tensor:
        return p if self.is_identity else self._multiply(self.matrix.to(p.dtype), p)

    def right_inverse(self, stencil: Tensor) -> Tensor:
        """The parameter whose stencil on the present mesh this is; solved in float64."""
        if self.is_identity:
            return stencil
        ratio = [h / ref for h, ref in zip(self.mesh_size, self.reference, strict=True)]
        beta = StencilBasis(self.width, len(self.width), ratio, self.reaction).to_beta(stencil.to("cpu", torch.float64))
        return (self.unit_basis.to_stencil(beta) if self.coordinates == "stencil" else beta).to(stencil)

    def reference_stencil(self, p: Tensor) -> Tensor:
        """The stencil on the reference mesh, on which the regulariser and the box are defined."""
        return p if self.coordinates == "stencil" else self._multiply(self.unit_basis.matrix.to(p), p)

    def reference_parameter(self, stencil: Tensor) -> Tensor:
        """The parameter of a stencil given on the reference mesh, the inverse of `reference_stencil`."""
        return stencil if self.coordinates == "stencil" else self.unit_basis.to_beta(stencil)

    def _multiply(self, matrix: Tensor, p: Tensor) -> Tensor:
        return (p.flatten(-len(self.width)) @ matrix.T).view(p.shape)

    def get_extra_state(self) -> Tensor:
        names = [COORDINATES.index(self.coordinates), list(REACTIONS).index(self.reaction)]
        return torch.tensor([*self.mesh_size, *self.reference, *names], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        dim = len(self.width)
        if state.shape != (2 * dim + 2,) or state[-2:].tolist() != self.get_extra_state()[-2:].tolist():
            raise ValueError(
                f"state dict must hold stencils of {dim} axes in coordinates {self.coordinates!r} with reaction "
                f"{self.reaction!r}, got mesh record {state.tolist()}"
            )
        mesh_size, reference = tuple(state[:dim].tolist()), tuple(state[dim : 2 * dim].tolist())
        if mesh_size != self.mesh_size:
            import warnings

            warnings.warn(
                f"mesh size follows the state dict: {self.mesh_size} becomes {mesh_size}; set_mesh_size moves it back",
                stacklevel=2,
            )
        self.move(mesh_size, reference)

    def extra_repr(self) -> str:
        return f"mesh_size={self.mesh_size}, reference={self.reference}, stride={self.stride}, {self.coordinates}"


def stencil_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The convolutions that carry derivative stencils: Conv1d/2d/3d, all widths odd, not all one."""
    return {name: layer for name, layer in _convolutions(module).items() if not _reason_to_skip(layer)}


def skipped_layers(module: nn.Module) -> dict[str, str]:
    """The convolutions that are left alone, with the reason: 1x1, even widths, transposed, otherwise parametrised."""
    reasons = {name: _reason_to_skip(layer) for name, layer in _convolutions(module).items()}
    return {name: reason for name, reason in reasons.items() if reason}


def stencil_parametrization(layer: nn.Module) -> StencilParametrization | None:
    """The StencilParametrization of a layer's weight, None for a plain layer."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    last = layer.parametrizations.weight[-1]  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    return last if isinstance(last, StencilParametrization) else None


def reparametrize(
    module: nn.Module,
    mesh_size: float | Sequence[float],
    *,
    reference: float | Sequence[float] | None = None,
    coordinates: str = "stencil",
    reaction: str = "121",
    stride: float = 1,
    example: Tensor | None = None,
) -> nn.Module:
    """Give every stencil of a module a mesh size, in place; the function that it computes stays.

    The parameter objects stay too (same names with ``.parametrizations.weight.original``), so an optimizer made before
    goes on. 1x1, even and transposed convolutions are left alone: `skipped_layers` lists them with the reason.

    What is exact: ordinary and grouped convolutions, and dilated ones, whose taps are d·h apart. What is not: a strided
    convolution samples its output at every s-th pixel centre and not at the centres of the coarser cells, an offset of
    (s-1)h/2 that changes with h; zero padding is a frame p·h wide that changes too. Both are errors of order h.

    Args:
        mesh_size: of the module's input (1/size for images on the unit square); one number or one per axis.
        reference: mesh size to which the stored parameter belongs; the present one if left out.
        coordinates: ``"stencil"`` or ``"beta"``, see `StencilParametrization`.
        stride: mesh of the module's first layer in units of ``mesh_size``, for parts of a larger network.
        example: a batch for the module. It is run once to see how far pooling and strides coarsen the mesh in front of
            each layer; without it all layers are taken to be on the mesh of the input.

    Raises:
        ValueError: nothing to reparametrise, a module that is reparametrised already, two layers that share a weight, a
            mesh size that is not positive.

    Reference: Ruthotto & Haber (2018), section 2.2.
    """
    layers = stencil_layers(module)
    if not layers:
        raise ValueError("module must have a convolution with odd stencils wider than one, got none")
    done = [name for name, layer in layers.items() if stencil_parametrization(layer)]
    if done:
        raise ValueError(f"module must be plain, got {done[0]!r} reparametrised already; use set_mesh_size or bake")
    _check_unshared(layers)
    strides = _trace_strides(module, layers, example) if example is not None else {}
    made = {}
    for name, layer in layers.items():
        dim = len(layer.kernel_size)
        h = [float(v) for v in per_axis(mesh_size, dim, "mesh_size")]
        ref = h if reference is None else [float(v) for v in per_axis(reference, dim, "reference")]
        traced = strides.get(name, (1.0,) * dim)
        spacing = [stride * s * d for s, d in zip(traced, layer.dilation, strict=True)]
        made[name] = StencilParametrization(layer.kernel_size, h, ref, spacing, coordinates, reaction)
    for name, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", made[name].to(layer.weight.device, layer.weight.dtype))
    return module


def set_mesh_size(module: nn.Module, mesh_size: float | Sequence[float]) -> None:
    """Put a reparametrised module on another mesh, in place: the stencils follow, parameters and references stay.

    Args:
        mesh_size: of the module's input; one number or one per axis. Deeper layers keep their ratio to it.

    Raises:
        ValueError: a plain module, a mesh size that is not positive.
    """
    found = _parametrizations(module)
    targets = [tuple(float(h) for h in per_axis(mesh_size, len(p.width), "mesh_size")) for p in found.values()]
    check_mesh_size(targets[0])
    for p, target in zip(found.values(), targets, strict=True):
        p.move(target, p.reference)


def mesh_size(module: nn.Module) -> float | tuple[float, ...]:
    """Mesh size of a reparametrised module's input: one number, or one per axis where they differ.

    Raises:
        ValueError: a plain module.
    """
    h = next(iter(_parametrizations(module).values())).mesh_size
    return h[0] if len(set(h)) == 1 else h


def coefficients(module: nn.Module) -> dict[str, Tensor]:
    """The coefficients β of every stencil in physical units: β = A(h)⁻¹ W on each layer's own mesh.

    Shape:
        - values: (out channels, in channels / groups, *width), float64 on the CPU; the last axes are the orders

    Raises:
        ValueError: a plain module.
    """
    return {
        name: p.basis().to_beta(module.get_submodule(name).weight.detach().to("cpu", torch.float64))  # pyright: ignore
        for name, p in _parametrizations(module).items()
    }


def bake(module: nn.Module) -> nn.Module:
    """Back to plain convolutions with the stencils of the present mesh, in place.

    Raises:
        ValueError: a plain module.
    """
    for name in _parametrizations(module):
        parametrize.remove_parametrizations(module.get_submodule(name), "weight", leave_parametrized=True)
    return module


def _parametrizations(module: nn.Module) -> dict[str, StencilParametrization]:
    found = {name: p for name, layer in stencil_layers(module).items() if (p := stencil_parametrization(layer))}
    if not found:
        raise ValueError("module must be reparametrised, got a plain one; use reparametrize(module, mesh_size) first")
    return found


def _convolutions(module: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def _reason_to_skip(layer: nn.Module) -> str:
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return "transposed"
    if all(w == 1 for w in layer.kernel_size):
        return "1x1"
    if any(w % 2 == 0 for w in layer.kernel_size):
        return "even width"
    plain = isinstance(layer._parameters.get("weight"), nn.Parameter)
    if not plain and not stencil_parametrization(layer):
        return "parametrised otherwise"
    return ""


def _check_unshared(layers: dict[str, nn.Module]) -> None:
    owner: dict[int, str] = {}
    for name, layer in layers.items():
        first = owner.setdefault(id(layer.weight), name)
        if first != name:
            raise ValueError(f"layers must not share a weight, got {first!r} and {name!r} with the same one")


def _trace_strides(module: nn.Module, layers: dict[str, nn.Module], example: Tensor) -> dict[str, tuple[float, ...]]:
    """Ratio of each layer's mesh to that of the example, from the sizes of what reaches it first."""
    sizes: dict[str, tuple[int, ...]] = {}

    def record(name: str):
        def hook(_, inputs):
            sizes.setdefault(name, tuple(inputs[0].shape[2:]))

        return hook

    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    training = {m: m.training for m in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
        for m, flag in training.items():
            m.training = flag
    full = tuple(example.shape[2:])
    return {
        name: tuple(_nearest_ratio(f, s) for f, s in zip(full, size, strict=True))
        for name, size in sizes.items()
        if len(size) == len(full)
    }


def _nearest_ratio(full: int, size: int) -> float:
    return float(round(full / size)) if size <= full else 1.0 / round(size / full)
