"""The studies of ``multipde bench`` that measure time, memory and what is possible."""

from dataclasses import dataclass
from typing import Literal, get_args

from multipde.cli.bench_options import Measurement, Precise, Rows
from multipde.cli.options import DynamicsName, OptimizerName


@dataclass(frozen=True, kw_only=True)
class Timed(Precise):
    """Options of all studies of the time and memory of a training step."""

    dynamics: tuple[DynamicsName, ...] = get_args(DynamicsName)
    """Dynamics of the networks."""


@dataclass(frozen=True, kw_only=True)
class Step(Timed):
    """Measure the speed of a training step, and that of the bare convolutions of the same network."""

    sizes: tuple[int, ...] = (8, 16, 32)
    """Sizes of the images in pixels."""
    batch: int | Literal["auto"] = 125
    """Images per step; auto: 125 at the largest size, and as many pixels at the others."""
    optimizer: OptimizerName = "sgd"
    """Optimizer of the step."""
    compile: bool = False
    """Compile the normalisation layers, and measure the step with and without them."""
    vectors: str = "widest"
    """What convolutions and kernels use: widest, avx512 (no AMX), or avx2, which most processors have."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.step_speed import step_study

        return step_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Inference(Measurement):
    """Measure the speed of networks in use, beside their bare convolutions and networks of others, in float32."""

    dynamics: tuple[DynamicsName, ...] = get_args(DynamicsName)
    """Dynamics of the networks."""
    batch: int = 125
    """Images per call."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.inference import inference_study

        return inference_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Memory(Timed):
    """Measure peak memory and time of a block with many time steps, for every way to store its states."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.memory import memory_study

        return memory_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Growth(Timed):
    """Measure how time and memory of a training step grow with size, depth, channels, batch and threads."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.cost_growth import growth_study

        return growth_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Scaling(Timed):
    """Measure the speed of a training step that is shared by one, two, ... processes."""

    batch: int = 128
    """Images per step, of all processes together."""
    processes: tuple[int, ...] | None = None
    """Numbers of processes. Left out: 1, 2, 4, ... up to the number of GPUs, or of cores."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.scaling import scaling_study

        return scaling_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Input(Measurement):
    """Measure the images per second that reach the network on every level, from files, shards and memory."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.input import input_study

        return input_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Architectures(Measurement):
    """Try 40 networks of torchvision, timm and audio: what can be done with them, and what is refused.

    Networks whose row is in the file already are not tried again.
    """

    arch: tuple[str, ...] | None = None
    """Try only these networks of the list. Left out: all of them."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.architecture_study import architectures_study

        return architectures_study(**self.given())


@dataclass(frozen=True, kw_only=True)
class Plan(Precise):
    """Compute what a training on ImageNet costs on many GPUs, and its bottleneck, from parts that are measured here."""

    arch: str = "resnet50"
    """Network of torchvision or timm."""
    sizes: tuple[int, ...] = (112, 160, 224)
    """Image sides of the levels, from coarse to fine."""
    epochs: tuple[float, ...] = (30, 30, 30)
    """Epochs of each level."""
    gpus: tuple[int, ...] = (1, 8, 64)
    """Numbers of GPUs."""
    batch: int = 256
    """Images per GPU and step."""
    tflops: float | None = None
    """Sustained rate of a GPU in TFLOP/s. Left out: measured where the device is a GPU, else 60."""
    bandwidth: float = 12.5
    """GB/s that every GPU sends to others in an all-reduce."""
    cores: int = 12
    """Cores per GPU that decode images."""

    def run_command(self) -> Rows:
        from multipde.studies.bench.cost_plan import plan_study

        return plan_study(**self.given())
