"""Compiled kernels are kept for the next start, and nothing but our own, whole library is loaded from there."""

import os
import shutil
import time

import pytest

from multipde.networks import user_cache
from multipde.networks.kernels.native import build


@pytest.fixture
def compiled(tmp_path, monkeypatch, compiler):
    """An empty cache; a list of the libraries that were compiled into it, which are copies of one."""
    build.library()
    _, path = next(build._compilers())
    ready = user_cache.kept(f"norms-{build._key(path, 'norms')}", ".so")
    assert ready is not None
    found = []

    def compile_to(name, target, source):
        found.append(name)
        shutil.copy(ready, target)

    monkeypatch.setattr(build, "_compile_to", compile_to)
    monkeypatch.setenv("MULTIPDE_CACHE", str(tmp_path / "cache"))
    return found


def test_a_second_start_compiles_nothing(compiled, tmp_path):
    build._built.__wrapped__()
    began = time.perf_counter()
    library, _ = build._built.__wrapped__()
    assert time.perf_counter() - began < 0.1
    assert library.tv_forward_float32
    assert len(compiled) == 1
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def flipped(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        flipped,
        lambda file: file.write_bytes(file.read_bytes()[:1000]),
        lambda file: file.chmod(0o666),
        lambda file: (file.rename(file.with_suffix(".x")), file.symlink_to(file.with_suffix(".x"))),
    ],
)
def test_anything_odd_is_compiled_anew(spoil, compiled, tmp_path):
    build._built.__wrapped__()
    (file,) = (tmp_path / "cache").iterdir()
    spoil(file)
    assert build._built.__wrapped__()[0] is not None
    assert len(compiled) == 2


def test_another_source_compiler_or_processor_has_another_library(compiled, tmp_path, monkeypatch):
    build._built.__wrapped__()
    monkeypatch.setattr(build, "_processor", lambda: "another")
    build._built.__wrapped__()
    other = tmp_path / "g++"
    other.symlink_to(shutil.which("sh"))
    monkeypatch.setenv("CXX", str(other))
    build._built.__wrapped__()
    assert len(compiled) == len(list((tmp_path / "cache").iterdir())) == 3


def test_where_nothing_can_be_kept_one_note_says_so(compiled, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.warns(UserWarning, match="^the compiled kernels are not kept for the next start: .* only its owner"):
        assert build._built.__wrapped__()[0] is not None
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.setenv("MULTIPDE_CACHE", os.devnull + "/x")
    with pytest.warns(UserWarning, match="are not kept for the next start: .*Not a directory"):
        assert build._built.__wrapped__()[0] is not None
