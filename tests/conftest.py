"""The process that starts those of pytest-xdist imports neither torch nor multipde; the others have `fixtures`."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

# Otherwise torch compiles ten programs to see what the compiler knows.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

pytest.register_assert_rewrite("tests.fixtures")

COMPILING, COMPILED = pytest.StashKey[subprocess.Popen](), pytest.StashKey[str]()

COMPILE = """
import torch
from multipde.networks.compilation import check_compiler
from multipde.networks.kernels import native
native.is_available("convolutions")
native.is_available("layers_float32")
check_compiler(torch.device("cpu"), by_torch=True)
"""
"""What takes a compiler ten seconds and more at its first use."""


def pytest_configure(config):
    """The processes that run tests get the fixtures; the one that starts them compiles kernels while they collect."""
    if not config.getoption("numprocesses", None):  # not set in the others
        config.pluginmanager.import_plugin("tests.fixtures")
        return
    config.stash[COMPILED] = tempfile.mkdtemp(prefix="multipde-tests-")
    os.environ["MULTIPDE_CACHE"] = f"{config.stash[COMPILED]}/cache"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    config.stash[COMPILING] = subprocess.Popen([sys.executable, "-c", COMPILE], **quiet)


def pytest_unconfigure(config):
    """What was compiled for this session is removed."""
    if process := config.stash.get(COMPILING, None):
        process.kill()
        process.wait()
        shutil.rmtree(config.stash[COMPILED], ignore_errors=True)
