"""Networks from the Hugging Face Hub: only for names that ask for it, and where ``huggingface_hub`` is installed."""

import re
from pathlib import Path
from typing import Any

from multipde.storage.files import CONFIG, SUMS
from multipde.storage.records import brief
from multipde.storage.tensors import MODEL

NAME = r"[\w][\w.\-]*"
ADDRESS = re.compile(rf"hf:/{{1,2}}({NAME}/{NAME})(?:@([\w./\-]+))?")
"""``hf://user/name``, perhaps with ``@revision``; pathlib writes one slash."""

CARD = "README.md"
INSTALL = "type pip install 'multipde[hub]'"


def is_address(directory: str | Path) -> bool:
    """Whether a name asks for a network of the Hub; a plain path never does, whether it exists or not."""
    return str(directory).startswith("hf:/")


def local_directory(directory: str | Path) -> Path:
    """The path itself, or for ``hf://user/name`` that of the downloaded copy.

    Raises:
        ValueError: the address has another form, huggingface_hub is missing, or the Hub has no such network.
    """
    if not is_address(directory):
        return Path(directory)
    found = ADDRESS.fullmatch(str(directory))
    if not found:
        raise ValueError(f"checkpoint on the Hub must be hf://user/name or hf://user/name@revision, got {directory}")
    return downloaded(found[1], revision=found[2])


def hub() -> Any:
    """The library huggingface_hub; ValueError with the command that installs it."""
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"huggingface_hub must be installed for networks on the Hub; {INSTALL}") from None
    return huggingface_hub


def downloaded(repo_id: str, **how: Any) -> Path:
    """The directory in the local cache with the files of a network; arguments of ``snapshot_download``."""
    library = hub()
    try:
        return Path(library.snapshot_download(repo_id, allow_patterns=[CONFIG, MODEL, SUMS, CARD], **how))
    except Exception as error:  # network, cache and server fail in many ways
        raise ValueError(f"network must be on the Hub, got for {repo_id}: {brief(error)}") from None
