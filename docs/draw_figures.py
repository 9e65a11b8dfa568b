"""The figures of the documentation that are no measurements: `python docs/draw_figures.py` writes docs/figures/*.svg.

They are at most about five inches wide, so that a telephone shows them in a size that can be read.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from multipde import StencilBasis, render_shapes, restrict_images, transfer_stencil
from multipde.evaluation.figure_style import PAGE, figure_style, subplots
from multipde.reports.plots import COLOURS, label_ends

ROOT = Path(__file__).parent.parent
PLACE = ROOT / "docs" / "figures"
GREY, BLUE, ORANGE = COLOURS[:3]


def idea() -> Any:
    """The picture of README: one stencil on three meshes, and what training there first is worth."""
    figure, axes = subplots(2, 3, figsize=(5, 4.4), height_ratios=(1, 1.5))
    image = picture()
    for axis, size, share in zip(axes[0], (8, 16, 32), (12, 49, 39), strict=True):
        mesh(axis, restrict_images(image, size)[0, 0], at=(size * 3 // 8, size * 3 // 8))
        axis.set_title(f"{size} pixels")
        axis.set_xlabel(f"{share} % of the work")
    for axis in axes[0, :2]:
        axis.annotate(
            "", (1.2, 0.5), (1.03, 0.5), xycoords="axes fraction", arrowprops={"arrowstyle": "->", "color": GREY}
        )
    grid = axes[1, 0].get_gridspec()
    for axis in axes[1]:
        axis.remove()
    axis = figure.add_subplot(grid[1, :2])
    figure.tight_layout(h_pad=2.2)
    work_figure(axis)
    return figure


def picture() -> torch.Tensor:
    """A ring in grey, (1, 1, 96, 96)."""
    images, labels = render_shapes(40, 96, seed=1)
    return images[labels == 1][:1].float().mean(1, keepdim=True)


def mesh(axis: Any, image: torch.Tensor, at: tuple[int, int]) -> None:
    """An image with its cells, and the cells that one stencil of 3x3 taps sees."""
    axis.imshow(image.numpy(), cmap="gray", extent=(0, len(image), len(image), 0))
    axis.set_xticks([])
    axis.set_yticks([])
    for i in range(4):
        axis.plot([at[1], at[1] + 3], [at[0] + i] * 2, color=ORANGE, linewidth=1.6)
        axis.plot([at[1] + i] * 2, [at[0], at[0] + 3], color=ORANGE, linewidth=1.6)


def work_figure(axis: Any, others: tuple[tuple[str, float, float, str], ...] = ()) -> None:
    """Accuracy against work on CIFAR-10, from the rows of the study ``transfer``.

    Args:
        others: name, TFLOPs, accuracy in per cent and marker of trainings by others.
    """
    text = (ROOT / "examples" / "results" / "transfer.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if row["data"] == "cifar10" and row["size"] == 32]
    hamiltonian = [row for row in rows if row.get("dynamics") == "hamiltonian" and row.get("test_accuracy")]
    hollow, ends = {"linestyle": ":", "fillstyle": "none"}, []
    lines: list[tuple[str, str, str, dict[str, Any]]] = [
        ("coarse to fine", "gradual copy", "fast", {"color": ORANGE, "marker": "o"}),
        ("coarse to fine, SGD", "copy", "sgd", {"color": ORANGE, "marker": "o"} | hollow),
        ("full size only, SGD", "fine only", "sgd", {"color": BLUE, "marker": "s"} | hollow),
        ("full size only", "fine only", "fast", {"color": BLUE, "marker": "s"}),
    ]
    if others:
        lines.append(("airbench, our run", "airbench, batch 256", "own", {"color": GREY, "marker": "v"}))
    for name, arm, recipe, style in lines:
        points: dict[int, list[float]] = {}
        for row in hamiltonian:
            if (row["arm"], row.get("recipe", "sgd")) == (arm, recipe):
                points.setdefault(round(row["flops"] / 1e12), []).append(100 * row["test_accuracy"])
        means = [(x, sum(points[x]) / len(points[x])) for x in sorted(points)]
        axis.plot(*zip(*means, strict=True), ms=6, **style)
        ends.append((*means[-1], name, style["color"]))
    for name, flops, accuracy, marker in others:
        axis.plot(flops, accuracy, color=GREY, marker=marker, ms=7, linestyle="none")
        ends.append((flops, accuracy, name, GREY))
    axis.set_xscale("log")
    ticks = (20, 100, 500, 2000) if others else (20, 50, 100, 200)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set(ylim=(64, 96 if others else 91), xlabel="work (TFLOPs)", title="CIFAR-10, test accuracy (%)")
    label_ends(axis, ends, space=0.12 if len(ends) < 6 else 0.09)


def work() -> Any:
    """The lower part of `idea` with the points where others stand."""
    figure, axis = subplots(figsize=(3.4, 3.6))
    work_figure(
        axis,
        (
            ("the paper", 2007, 89.3, "D"),
            ("airbench, published", 360, 94.0, "^"),
        ),
    )
    return figure


def stencils() -> Any:
    """The nine terms of a 3x3 stencil, and how their error falls with the mesh size."""
    figure, axes = subplots(4, 3, figsize=(5, 8.2), height_ratios=(1, 1, 1, 1.9))
    basis = StencilBasis(width=3, dim=2, mesh_size=1.0)
    names = [["u", "∂ₓu", "−∂ₓ²u"], ["∂ᵧu", "∂ᵧ∂ₓu", "−∂ᵧ∂ₓ²u"], ["−∂ᵧ²u", "−∂ᵧ²∂ₓu", "∂ᵧ²∂ₓ²u"]]
    for k, (i, j) in enumerate(basis.orders):
        taps, axis = basis.matrix[:, k].reshape(3, 3) + 0.0, axes[i][j]
        axis.imshow(taps.numpy(), cmap="PuOr", vmin=-2 * taps.abs().max(), vmax=2 * taps.abs().max())
        for y in range(3):
            for x in range(3):
                axis.text(x, y, f"{taps[y, x] + 0.0:.3g}", ha="center", va="center", fontsize=8.5, color="#222222")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"β[{i}, {j}]:  {names[i][j]}")
    grid = axes[3, 0].get_gridspec()
    for axis in axes[3]:
        axis.remove()
    axis = figure.add_subplot(grid[3, :])
    sizes = (8, 16, 32, 64, 128)
    for term, (name, color, marker) in enumerate(
        (("reaction", GREY, "^"), ("convection", BLUE, "s"), ("diffusion", ORANGE, "o"))
    ):
        axis.loglog(sizes, [derivative_error(size, term) for size in sizes], color=color, marker=marker, label=name)
    axis.loglog(sizes, [60 / size**2 for size in sizes], color=GREY, linestyle=":", label="order 2")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("cells")
    axis.set_title("largest error on sin 2πx")
    axis.legend()
    figure.tight_layout()
    return figure


def derivative_error(size: int, term: int) -> float:
    """Largest error of a term of the basis in one dimension on sin(2πx), away from the boundary."""
    x = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    w = 2 * torch.pi
    u = torch.sin(w * x)
    exact = (u, w * torch.cos(w * x), w**2 * u)[term]
    column = StencilBasis(width=3, dim=1, mesh_size=1 / size).matrix[:, term]
    found = functional.conv1d(u[None, None], column[None, None], padding=1)[0, 0]
    return (found - exact)[1:-1].abs().max().item()


def meshes() -> Any:
    """One stencil of one axis on three meshes by three maps, and its symbol against the frequency in the image."""
    figure, axes = subplots(3, figsize=(5, 7.5), sharex=True)
    stencil = StencilBasis(width=3, dim=1, mesh_size=1 / 16).to_stencil(
        torch.tensor([1.0, 0.0, 0.003], dtype=torch.float64)
    )
    for axis, method in zip(axes, ("copy", "rediscretize", "galerkin"), strict=True):
        for size, color, style in ((8, BLUE, "--"), (16, GREY, "-"), (32, ORANGE, ":")):
            taps = transfer_stencil(stencil[None, None], method, size / 16, dim=1)[0, 0]
            waves = torch.linspace(0, size / 2, 60, dtype=torch.float64)
            phases = torch.exp(2j * torch.pi * waves[:, None] / size * torch.arange(-1, 2))
            axis.plot(
                waves.numpy(),
                (phases @ taps.to(phases)).real.numpy(),
                color=color,
                linestyle=style,
                label=f"{size} cells",
            )
        waves = torch.linspace(0, 16, 60, dtype=torch.float64)
        axis.plot(
            waves, 1 + 0.003 * waves.mul(2 * torch.pi).square(), color=GREY, linewidth=0.8, label="1 − 0.003 d²/dx²"
        )
        axis.set(title=method, ylabel="answer of the stencil", ylim=(0, 12))
        axis.set_yticks([0, 4, 8, 12])
    axes[2].set_xticks([0, 4, 8, 12, 16])
    axes[2].set_xlabel("waves per image")
    axes[0].legend(loc="upper right")
    figure.tight_layout()
    return figure


def detail() -> Any:
    """An opening of 3x3 taps on the mesh of 16, and the same one for images of 32 pixels."""
    figure, axes = subplots(1, 2, figsize=(5, 2.8))
    image = picture()
    for axis, size, cells, title in zip(
        axes, (16, 32), (3, 6), ("16 pixels:\n3x3 taps, stride 1", "32 pixels:\n6x6 taps, stride 2"), strict=True
    ):
        start = size * 3 // 8
        axis.imshow(restrict_images(image, size)[0, 0].numpy(), cmap="gray", extent=(0, size, size, 0))
        for i in range(cells + 1):
            width = 2 if i * 16 % size == 0 else 0.8
            axis.plot([start, start + cells], [start + i] * 2, color=ORANGE, linewidth=width)
            axis.plot([start + i] * 2, [start, start + cells], color=ORANGE, linewidth=width)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(title)
    figure.tight_layout()
    return figure


def stability() -> Any:
    """Size of the features along time for dt below and above the bound, layers without norm, random stencils."""
    figure, axes = subplots(2, figsize=(5, 6), sharex=True)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
    start = torch.randn(20, generator=generator, dtype=torch.float64)
    for axis, (name, bound) in zip(axes, (("parabolic", "dt |K|² ≤ 2"), ("second_order", "dt |K| < 2")), strict=True):
        for dt, color, style in ((1.0, GREY, "-"), (1.9, BLUE, "--"), (2.2, ORANGE, ":")):
            axis.semilogy(sizes_in_time(name, matrix, start, dt, 40), color=color, linestyle=style, label=f"dt = {dt}")
        axis.set_title(f"{name}: stable for {bound}")
        axis.set(ylabel="|Y| / |Y(0)|", ylim=(1e-3, 1e6))
    axes[1].set_xlabel("time steps, |K| = 1")
    axes[0].legend()
    figure.tight_layout()
    return figure


def sizes_in_time(dynamics: str, matrix: torch.Tensor, y: torch.Tensor, dt: float, steps: int) -> list[float]:
    """|Y(t)|/|Y(0)| for F(y) = -Kᵀ K y, by forward Euler or by leapfrog starting at rest."""
    previous, sizes = y, [1.0]
    start = y.norm()
    for _ in range(steps):
        force = -matrix.T @ (matrix @ y)
        y, previous = (y + dt * force if dynamics == "parabolic" else 2 * y - previous + dt**2 * force), y
        sizes.append((y.norm() / start).item())
    return sizes


FIGURES: dict[str, Callable[[], Any]] = {
    figure.__name__: figure for figure in (idea, work, stencils, meshes, detail, stability)
}


def main(place: Path = PLACE) -> None:
    for name, draw in FIGURES.items():
        with figure_style(PAGE):
            draw().savefig(place / f"{name}.svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
