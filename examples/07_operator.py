"""Where β is right: the solution operator of an equation, learned on a mesh of 32 cells and used on finer ones.

The equation is u_t = div(D ∇u) on a periodic square, with a full matrix D. A network of 16 equal steps
y ← y + dt K(y), with one stencil K of 3x3 taps, learns from pairs of smooth fields u(0), u(T) on 32x32 cells. Then it
computes on finer meshes, which it has never seen. Since a step must obey dt |K| ≤ 2, and |K| grows like h⁻², it takes
about four times as many steps where h is halved. Relative errors against the exact solution, on new fields of the same
kind, with nothing trained again:

    cells  β of the equation  learned, β kept  learned, copied  learned, at 32 cells
    32               1.5e-02          4.4e-03          4.4e-03               4.4e-03
    64               4.0e-03          1.9e-02          4.8e-01               2.8e-02
    128              1.0e-03          2.5e-02          6.8e-01               2.8e-02

The first column falls by four where h is halved, as the discretisation does. The second ends at a plateau: on 32 cells
the stencil has absorbed the error of the discretisation there, by diffusion that is a little off and a term of fourth
order, and carries it along. Copied stencils compute another equation. The last column is what one would do without
this library: compute on 32 cells and interpolate. How far β is ahead of copying grows with the smoothness of the fields
from which the network has learned; the error of copying over that of β on 64 cells, for waves per side

       up to 2   up to 4   up to 8
          49.8      25.1      14.4

Takes about half a minute. ``--figure FILE`` draws both tables.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from multipde import convert, operator_norm
from multipde.evaluation.figure_style import PAGE, figure_style
from multipde.reports import plots

DIFFUSION, TIME = (0.01, 0.004, 0.006), 0.16
"""D = [[a, b], [b, c]] as (a, b, c), and T."""
SIZE, STEPS, WAVES = 32, 16, 4
WAYS = ("β of the equation", "learned, β kept", "learned, copied", f"learned, at {SIZE} cells")


def fields(num: int, size: int, waves: int, seed: int, time: float = 0.0) -> Tensor:
    """Averages over the cells of random waves, after the equation has acted for a time: exact, by Fourier."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.arange(-waves, waves + 1, dtype=torch.float64)
    kx, ky = torch.meshgrid(k, k, indexing="ij")
    c = torch.complex(*torch.randn(2, num, len(k), len(k), dtype=torch.float64, generator=generator))
    c = c / len(k)
    xx, xy, yy = DIFFUSION
    decay = -((2 * math.pi) ** 2) * (xx * kx**2 + 2 * xy * kx * ky + yy * ky**2)
    c = c * torch.exp(decay * time) * torch.sinc(kx / size) * torch.sinc(ky / size)
    waves_at = torch.exp(2j * math.pi * torch.outer(k, (torch.arange(size, dtype=torch.float64) + 0.5) / size))
    return torch.einsum("nkl,kx,ly->nxy", c, waves_at, waves_at).real[:, None]


class Operator(nn.Module):
    """u(T) from u(0) by equal steps of forward Euler with one stencil."""

    def __init__(self, steps: int = STEPS):
        super().__init__()
        self.steps = steps
        self.k = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
        nn.init.zeros_(self.k.weight)

    def forward(self, y: Tensor) -> Tensor:
        for _ in range(self.steps):
            y = y + TIME / self.steps * self.k(y)
        return y


def learned(waves: int = WAVES, seed: int = 0) -> Operator:
    """The network on 32x32 cells with the least squares fit to 16 pairs of fields."""
    net, old, new = Operator(), fields(16, SIZE, waves, seed), fields(16, SIZE, waves, seed, TIME)
    fit = torch.optim.LBFGS(net.parameters(), max_iter=100, tolerance_grad=0, tolerance_change=0, history_size=20,
                            line_search_fn="strong_wolfe")  # fmt: skip

    def loss() -> Tensor:
        fit.zero_grad()
        found = (net(old) - new).square().mean()
        found.backward()
        return found

    fit.step(loss)
    return net


def given(size: int) -> Operator:
    """The network with the central differences of the equation on a mesh."""
    net = Operator(STEPS * (size // SIZE) ** 2)  # dt is proportional to the square of h
    xx, xy, yy = DIFFUSION
    taps = torch.tensor([[xy / 2, xx, -xy / 2], [yy, -2 * (xx + yy), yy], [-xy / 2, xx, xy / 2]], dtype=torch.float64)
    net.k.weight.data[0, 0] = size**2 * taps
    return net


def moved(net: Operator, size: int, method: str) -> Operator:
    """The network on another mesh, with as many steps as keep dt |K| at most what it was; copied, those are as many."""
    new = convert(net, factor=size / SIZE, method=method)
    new.steps = math.ceil(net.steps * operator_norm(new.k.weight, size) / operator_norm(net.k.weight, size))
    return new


@torch.no_grad()
def errors(net: Operator, size: int, waves: int = WAVES, seed: int = 1) -> dict[str, float]:
    """Relative errors on new fields: the ways of `WAYS`."""
    old, new = fields(10, size, waves, seed), fields(10, size, waves, seed, TIME)
    coarse = net(fields(10, SIZE, waves, seed))
    found = {
        WAYS[0]: given(size)(old),
        WAYS[1]: moved(net, size, "rediscretize")(old),
        WAYS[2]: moved(net, size, "copy")(old),
        WAYS[3]: nn.functional.interpolate(coarse, size=(size, size), mode="bicubic"),
    }
    return {way: float((y - new).norm() / new.norm()) for way, y in found.items()}


def main(
    meshes: tuple[int, ...] = (32, 64, 128), smoothness: tuple[int, ...] = (2, 4, 8), figure: Path | None = None
) -> None:
    net = learned()
    by_mesh = {size: errors(net, size) for size in meshes}
    print("cells" + "".join(f"{way:>{len(way) + 2}}" for way in WAYS))
    for size, found in by_mesh.items():
        print(f"{size:<5}" + "".join(f"{found[way]:>{len(way) + 2}.1e}" for way in WAYS))
    by_waves = {waves: errors(net if waves == WAVES else learned(waves), 2 * SIZE, waves) for waves in smoothness}
    factors = {waves: found[WAYS[2]] / found[WAYS[1]] for waves, found in by_waves.items()}
    print("".join(f"{f'up to {waves}':>10}" for waves in factors))
    print("".join(f"{factor:>10.1f}" for factor in factors.values()))
    if figure is not None:
        draw(by_mesh, factors, figure)


@figure_style(PAGE)
def draw(by_mesh: dict[int, dict[str, float]], factors: dict[int, float], file: Path) -> None:
    """Both tables as a figure."""
    figure, (above, below) = plots.subplots(2, figsize=(5, 7), height_ratios=(1.4, 1))
    for i, way in enumerate(WAYS):
        above.plot(list(by_mesh), [found[way] for found in by_mesh.values()], **plots.style(i, label=way, ms=6))
    above.set(xscale="log", yscale="log", xlabel="cells per side", ylabel="relative error of u(T)")
    above.set_xticks(list(by_mesh), [str(size) for size in by_mesh])
    above.minorticks_off()
    above.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    below.plot(list(factors), list(factors.values()), **plots.style(1, ms=6))
    below.set(
        xscale="log", yscale="log", xlabel="waves per side, at most", ylabel=f"error copied / β kept, {2 * SIZE} cells"
    )
    below.set_xticks(list(factors), [str(waves) for waves in factors])
    below.set_yticks([10, 20, 50], ["10", "20", "50"])
    below.minorticks_off()
    figure.tight_layout()
    plots.save(figure, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A solution operator, learned on one mesh and used on finer ones.")
    parser.add_argument("--figure", type=Path, help="file of the figure (.svg, .png or .pdf)")
    main(**vars(parser.parse_args()))
