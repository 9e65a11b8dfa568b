"""Small data and runs for all tests; decoded images are kept in a directory of the test session.

This is a plugin of the processes that run tests, see `conftest`.
"""

import functools
import gc
import inspect
import json
import multiprocessing
import os
import runpy
import signal
from dataclasses import replace
from multiprocessing import context, forkserver
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import multipde
from multipde import load
from multipde.conversions import stable_conversion
from multipde.data import shapes
from multipde.evaluation import candidates, corruptions, robustness
from multipde.exports import measured
from multipde.networks import presets
from multipde.networks.compilation import check_compiler
from multipde.networks.kernels import dispatch, native
from multipde.stability import bounds, norms
from multipde.training.step import TrainStep

torch.set_num_threads(1)  # two test processes on two cores


def pytest_collection_finish():
    """What is imported stays: the garbage collector need not look through it again, which took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _every_shape_is_drawn_once():
    drawn = functools.lru_cache(maxsize=64)(shapes.render_shapes)

    @functools.wraps(shapes.render_shapes)
    def render_shapes(*args, **options):
        return tuple(t.clone() for t in drawn(*args, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "render_shapes", render_shapes)
        yield


@pytest.fixture(scope="session")
def shared_by_workers(tmp_path_factory, request) -> Path:
    """A directory of this test session that the processes of pytest-xdist share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(autouse=True, scope="session")
def _the_cache_is_that_of_the_session(shared_by_workers, request):
    """Nothing is kept in the home directory; what `pytest_sessionstart` compiles is found by all processes."""
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(request.config, "workerinput"):
            patch.setenv("MULTIPDE_CACHE", str(shared_by_workers / "cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _workers_share_one_import():
    """Processes that are spawned import torch once: a server does it, and forks for each of them.

    As in one that is spawned for itself, nothing of the parent is in them but what is pickled. Commands that a test
    starts spawn as users have it, and so do tests with `spawned`. The server blocks no signals, whichever test starts
    it, since all of its processes would inherit that.
    """
    server = multiprocessing.get_context("forkserver")
    of_torch = ["torch.utils.data", "torch._dynamo", "torch._meta_registrations"]  # what a training imports of it
    server.set_forkserver_preload([*of_torch, "multipde.data.streamed", "multipde.training.run"])
    start = forkserver.ForkServer.ensure_running

    def start_hearing(self):
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            start(self)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forkserver.ForkServer, "ensure_running", start_hearing)
        patch.setitem(context._concrete_contexts, "spawn", server)  # pyright: ignore[reportAttributeAccessIssue]
        yield


@pytest.fixture(autouse=True, scope="session")
def _trainings_are_short():
    """No file waits for the disk, bounds at a switch and growth beside attacks are measured by two iterations, and an
    exported network is timed by one call.
    """

    def roughly(measure):
        def call(*args, **options):
            with pytest.MonkeyPatch.context() as patch:
                precise = norms.jacobian_norm
                patch.setattr(norms, "operator_norm", functools.partial(norms.operator_norm, num_iterations=2))
                patch.setattr(norms, "jacobian_norm", lambda force, y, num, seed: precise(force, y, 2, seed))
                return measure(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(candidates, "stability_report", roughly(candidates.stability_report))
        patch.setattr(candidates, "stabilized", roughly(candidates.stabilized))
        patch.setattr(robustness, "growth_report", functools.partial(robustness.growth_report, num_iterations=2))
        patch.setattr(measured, "CALLS", 1)
        patch.setattr(measured, "SECONDS", 0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _figures_are_drawn_once():
    """Figures are written without the layout that draws them a first time; `laid_out` has it."""
    original = Figure.savefig

    @functools.wraps(original)
    def savefig(self, *args, bbox_inches=None, **options):
        self._layout_engine = None
        return original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="module")
def laid_out():
    """Figures as users have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", inspect.unwrap(Figure.savefig))
        yield


@pytest.fixture(autouse=True, scope="session")
def _seeds_are_for_devices_that_are_there():
    """A seed is not kept, with a trace of the stack, for a device that may come later."""
    with pytest.MonkeyPatch.context() as patch:
        for backend in (torch.cuda, torch.xpu, torch.mtia):
            if not backend.is_available():
                patch.setattr(backend, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture
def precise_bounds(monkeypatch):
    """The bounds on dt are measured as users have them."""
    monkeypatch.setattr(candidates, "stability_report", bounds.stability_report)
    monkeypatch.setattr(candidates, "stabilized", stable_conversion.stabilized)


@pytest.fixture(scope="module")
def spawned():
    """Processes are spawned as users have it: torch watches those that this process has started itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(context._concrete_contexts, "spawn", context.SpawnContext())  # pyright: ignore
        yield


@pytest.fixture
def few_shapes(monkeypatch):
    """At most 60 shapes are drawn, where a command takes as many as users have and the number does not matter."""
    draw = shapes.render_shapes
    monkeypatch.setattr(shapes, "render_shapes", lambda num, *args, **more: draw(min(num, 60), *args, **more))


@pytest.fixture
def one_strength(monkeypatch):
    """Robustness is measured at one strength of each corruption and attack, where all that counts is the table."""
    for name, corruption in corruptions.CORRUPTIONS.items():
        monkeypatch.setitem(corruptions.CORRUPTIONS, name, replace(corruption, strengths=corruption.strengths[-1:]))
    for kind, strengths in robustness.KINDS.items():
        for known in (robustness.KINDS, robustness.ATTACKS):
            if kind in known:
                monkeypatch.setitem(known, kind, strengths[-1:])


def load_unfinished(run, model=None):
    """The network of a run that is not finished, of which `load` warns."""
    with pytest.warns(UserWarning, match="is not finished; this is its best network up to checkpoint-"):
        return load(run, model)


def write_folder(root, num_train=40, num_test=20, size=16, suffix=".png", classes=("disc", "ring", "square")):
    """A folder data set of shapes: root/train/CLASS/*, root/test/CLASS/*."""
    for part, num, seed in (("train", num_train, 0), ("test", num_test, 1)):
        images, labels = shapes.render_shapes(20 * num, size, seed)
        for label, name in enumerate(classes):
            chosen = images[labels == label][:num]
            directory = root / part / name
            directory.mkdir(parents=True)
            for i, image in enumerate(chosen):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(directory / f"{i:03d}{suffix}")
    return root


EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def small_examples(monkeypatch):
    """Few channels and test images, for examples of which only the work and the lines are looked at."""
    monkeypatch.setitem(presets._DATA["shapes"], "channels", (4, 8, 16))
    draw = multipde.load_data
    monkeypatch.setattr(multipde, "load_data", lambda *args, **options: draw(*args, **options | {"num_test": 60}))


def run_example(name: str, **arguments) -> None:
    """Run an example with other arguments than its own."""
    runpy.run_path(str(EXAMPLES / name), run_name="example")["main"](**arguments)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "shapes3")


def as_format_1(directory: Path) -> Path:
    """Make of a run or network one of an older version, which need not have checksums, so that it can be changed."""
    for sums in directory.rglob("SHA256SUMS"):
        sums.unlink()
    for file in directory.rglob("*.json"):
        file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    return directory


def weights(run: Path) -> bytes:
    """The bytes of the weights of a run or a network."""
    return (run / "model.safetensors").read_bytes()


def rows_without_times(run: Path) -> list[dict]:
    """The rows of the metrics without all that depends on the clock."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in parsed]


def narrow(patch: pytest.MonkeyPatch) -> None:
    """Give the presets few channels."""
    for options in presets._DATA.values():
        patch.setitem(options, "channels", tuple(4 + 2 * i for i in range(len(options["channels"]))))
        patch.setitem(options, "out_channels", 8)


@pytest.fixture(scope="module")
def narrow_presets():
    """The presets with few channels, for tests of what is done with them."""
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch)
        yield


@pytest.fixture
def without_report(monkeypatch):
    """Commands write no report after a training."""
    monkeypatch.setattr("multipde.reports.page.report_at_end", lambda *args: None)


@pytest.fixture
def kernels_by_torch(monkeypatch):
    """Kernels are compiled by torch.compile, as they are on a GPU, and not those in C++ taken."""
    monkeypatch.setattr(native, "handles", lambda y, axis=-1: False)


@pytest.fixture
def nothing_compiled_by_torch(monkeypatch):
    """What torch.compile would compile runs as it is written; that compiled code does the same is asked elsewhere."""
    monkeypatch.setattr(dispatch, "compiled", lambda kernel: kernel)


@pytest.fixture(params=["native", "torch"])
def either_kernels(request, compiler):
    """Those in C++ and those by torch.compile."""
    if request.param == "torch":
        request.getfixturevalue("kernels_by_torch")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiler():
    """What is needed to compile for the processor is here, for torch.compile too."""
    try:
        for by_torch in (False, True):
            check_compiler(torch.device("cpu"), by_torch)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def figures(monkeypatch):
    """Figures as they were when they were saved, to ask for what is drawn in them."""
    saved, original = [], Figure.savefig

    def savefig(self, *args, **options):
        saved.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


@pytest.fixture
def unwritten_figures(monkeypatch):
    """Figures that were to be saved, where what is drawn is asked for and the file is not."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: saved.append(self))
    return saved


@pytest.fixture
def signal_at_step(monkeypatch):
    """A function: this process gets a signal within the num-th step from now on; none for None."""
    original = TrainStep.__call__

    def at(num, signum=signal.SIGTERM):
        calls = []

        def step(self, *args, **options):
            calls.append(1)
            if len(calls) == num:
                os.kill(os.getpid(), signum)
            return original(self, *args, **options)

        monkeypatch.setattr(TrainStep, "__call__", step)

    return at
