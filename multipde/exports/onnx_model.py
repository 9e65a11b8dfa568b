"""Networks as ONNX models, and onnxruntime as a module that runs them."""

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OLDEST_OPSET = 18
"""Torch writes this version of ONNX's operators or newer ones."""

INPUT, OUTPUT = "images", "scores"

QUANTIZED = ("Conv", "Gemm", "MatMul")
"""What is computed with integers."""


class OnnxNetwork(nn.Module):
    """An ONNX model on the processor by onnxruntime, with as many threads as torch has.

    Shape:
        - x: as the model takes it; the batch may have any length
        - result: (N, classes)
    """

    def __init__(self, model: bytes):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {INPUT: x.contiguous().numpy()})[0])


def check_onnx(opset: int) -> None:
    """Raise ValueError unless the packages are installed and know this version of the operators."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"onnx, onnxscript and onnxruntime must be installed for ONNX, got no {error.name}; "
            "type pip install 'multipde[export]'"
        ) from None
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset must be between {OLDEST_OPSET} and {newest}, got {opset}")


def onnx_model(net: nn.Module, example: Tensor, opset: int, notes: Mapping[str, str]) -> bytes:
    """The ONNX model of a network in evaluation mode, for batches of any length.

    Args:
        example: a batch of more than one image, of which only the shape matters.
        notes: metadata of the model.
    """
    import onnx

    batch = torch.export.Dim("batch", min=1)
    with quietly(), following(net):
        program: Any = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: batch},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        proto = program.model_proto
    found = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if found != opset:
        raise ValueError(f"opset must be one that torch can write for this network, got {opset}; type --opset {found}")
    onnx.helper.set_model_props(proto, dict(notes))
    return proto.SerializeToString()


def quantized(model: bytes, batches: Iterable[Tensor]) -> bytes:
    """A model whose convolutions and matrix products compute with integers of eight bits, quantised by onnxruntime.

    Weights are scaled per channel, features by their range on the calibration images. The states of the time steps,
    their sums and the norms stay in float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict] = ({INPUT: x.contiguous().numpy()} for x in batches)

        def get_next(self) -> dict | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return next(self.feeds, None)

    with quietly(), tempfile.TemporaryDirectory() as folder:
        given, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "int8"))
        given.write_bytes(model)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return result.read_bytes()


@contextmanager
def following(net: nn.Module) -> Iterator[None]:
    """Replace what torch raises where it cannot follow a network by a ValueError of one line."""
    try:
        yield
    except Exception as error:  # the exporters raise anything
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
        raise ValueError(
            f"network must be one that torch.export can follow, got {type(net).__name__} ({reason}); "
            "type --format state_dict"
        ) from None


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings and log messages of the packages, which concern their own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
