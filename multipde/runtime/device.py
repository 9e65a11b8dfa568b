"""Where is computed, and in which precision."""

import torch

from multipde.networks.network import PDENet

AMP = ("off", "bf16", "auto")


def place(net: PDENet, device: torch.device) -> PDENet:
    """The network moved to the device, in the memory layout that is fastest there."""
    net.to(device)
    if net.config.dim == 2:
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return net


def choose_device(device: str | torch.device) -> torch.device:
    """The device of that name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: a device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ValueError(
            f"device must be one that torch has here, got {device!r} ({reason}); type --device cpu"
        ) from None
    return chosen


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Mixed precision as asked for: ``"off"``, or ``"bf16"`` for bfloat16 convolutions and products.

    Raises:
        ValueError: as `choose_amp`.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=choose_amp(device, amp) == "bf16")


def choose_amp(device: torch.device, amp: str) -> str:
    """``"off"`` or ``"bf16"``; ``"auto"`` is bf16 where the device has instructions for it.

    Raises:
        ValueError: an unknown name, or bf16 on a device that cannot compute with it. (A processor always can: without
            the instructions it is slow.)
    """
    if amp not in AMP:
        raise ValueError(f"amp must be one of {', '.join(AMP)}, got {amp!r}")
    if amp == "auto":
        return "bf16" if _has_bf16(device) else "off"
    if amp == "bf16" and device.type != "cpu" and not _has_bf16(device):
        raise ValueError(f"amp must be off on {device}, which has no bfloat16, got bf16; type --amp off")
    return amp


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        known = getattr(torch.cpu, "get_capabilities", dict)()  # not in the oldest torch that will do
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device.type == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)
