"""The networks of the paper by name, and the default network for a data set."""

from multipde.networks.config import NetworkConfig
from multipde.networks.dynamics import DYNAMICS

_DATA = {
    "stl10": {"channels": (16, 32, 64, 128), "out_channels": 128, "size": 96},
    "cifar10": {"channels": (32, 64, 112), "out_channels": 112, "size": 32},
    "cifar100": {"channels": (32, 64, 128), "out_channels": 256, "size": 32, "classes": 100},
    "shapes": {"channels": (16, 32, 64), "out_channels": 64, "size": 32},
}


def preset_names() -> list[str]:
    """The names of the networks that `preset` returns."""
    return [f"{data}-{dynamics}" for data in _DATA for dynamics in DYNAMICS]


def preset(name: str) -> NetworkConfig:
    """The network of the paper for a data set and a dynamics, or a smaller network for the rendered shapes.

    >>> preset("cifar10-hamiltonian").channels
    (32, 64, 112)

    Args:
        name: ``"<data>-<dynamics>"``, where data is stl10, cifar10, cifar100 or shapes, see `preset_names`.

    Raises:
        ValueError: the name is unknown.

    Reference: Ruthotto & Haber (2018), section 5.
    """
    data, _, dynamics = name.partition("-")
    if data not in _DATA or dynamics not in DYNAMICS:
        raise ValueError(f"preset must be one of {', '.join(preset_names())}, got {name!r}")
    return NetworkConfig(dynamics=dynamics, **_DATA[data])


def default_network(data: str, dynamics: str | None = None, size: int = 32, name: str | None = None) -> NetworkConfig:
    """The preset of a data set; for other data that of CIFAR-10, or that of STL-10 if images have 64 pixels or more.

    If a preset is named, it is returned instead; the dynamics must then be None or that of this preset.
    """
    if name is not None:
        config = preset(name)
        if dynamics not in (None, config.dynamics):
            raise ValueError(f"dynamics must be that of the preset {name}, got {dynamics}")
        return config
    if data not in _DATA:
        data = "stl10" if size >= 64 else "cifar10"
    return preset(f"{data}-{dynamics or 'hamiltonian'}")
