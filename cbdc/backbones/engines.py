"""What runs a network: torch, or ONNX Runtime, on a CPU several times as fast."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelFileError
from ..modelfile import read_modelfile, write_modelfile
from .networks import Backbone

_OPSET = 17
_CHUNK = 4  # images in one run of ONNX Runtime: as fast as 32, in an eighth of the memory
_exported: dict[str, bytes] = {}  # by the backbone's fingerprint, for the life of the process
_exporting = threading.Lock()


class Engine(Protocol):
    """Images of the network's input size to features; may be called by several threads at once."""

    name: str

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Uint8 (n, height, width, 3) to float32 (n, n_features)."""


def make_engine(backbone: Backbone, engine: str = "auto", cache_dir: Path | None = None) -> Engine:
    """The engine of that name; "auto" takes torch where there is CUDA, and else ONNX Runtime if it can."""
    cuda = torch.cuda.is_available()
    if engine == "torch" or (engine == "auto" and cuda):
        return TorchEngine(backbone, "cuda" if cuda else "cpu")
    try:
        return OnnxEngine(backbone, cache_dir)
    except ExportError as error:
        if engine == "onnx":
            raise
        warnings.warn(f"{error} Using engine='torch', which is slower.", RuntimeWarning, stacklevel=2)
        return TorchEngine(backbone, "cpu")


class ExportError(RuntimeError):
    """A network that the ONNX exporter cannot express."""


class TorchEngine:
    """The network as torch runs it."""

    def __init__(self, backbone: Backbone, device: str) -> None:
        self.name = "torch" if device == "cpu" else f"torch-{device}"
        self._device = device
        self._lock = threading.Lock()
        self._network = _FromPixels(backbone).to(device)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        with self._lock, torch.inference_mode():  # torch uses all processors in one call
            return self._network(torch.from_numpy(pixels).to(self._device)).cpu().numpy()


class OnnxEngine:
    """The network in ONNX Runtime, exported once in a process, or once for all where there is a cache folder.

    A call runs in the caller's thread alone. Callers in several threads use all processors better than one call that is
    split among them: nobody waits for the slowest part of each layer.
    """

    name = "onnx"

    def __init__(self, backbone: Backbone, cache_dir: Path | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        model = _onnx_model(backbone, cache_dir)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        chunks = [pixels[start : start + _CHUNK] for start in range(0, len(pixels), _CHUNK)]
        return np.concatenate([self._session.run(None, {"pixels": chunk})[0] for chunk in chunks])


class _FromPixels(nn.Module):
    """A network with its normalisation in front: pixels come as they are decoded, the engine converts them."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.network = backbone.network
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)


def _onnx_model(backbone: Backbone, cache_dir: Path | None) -> bytes:
    key = backbone.fingerprint
    with _exporting:
        if key not in _exported:
            file = None if cache_dir is None else cache_dir / f"{key}-opset{_OPSET}.onnx.safetensors"
            _exported[key] = _export(backbone) if file is None else _kept_export(backbone, file)
        return _exported[key]


def _kept_export(backbone: Backbone, file: Path) -> bytes:
    """The export kept in the file, if it is whole; otherwise a new one, kept."""
    try:
        arrays, _ = read_modelfile(file)
        return arrays["onnx"].tobytes()
    except (ModelFileError, KeyError):
        model = _export(backbone)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFileError(
                f"{file.parent.name}: the cache folder cannot be made ({error.strerror}). Fix: give another cache_dir."
            ) from error
        write_modelfile(file, {"onnx": np.frombuffer(model, np.uint8)}, {"backbone": backbone.name})
        return model


def _export(backbone: Backbone) -> bytes:
    """Export by tracing. (The newer exporter, dynamo=True, takes five times as long and two more packages.)"""
    pixels = torch.zeros(1, *backbone.input_size, 3, dtype=torch.uint8)
    buffer: Any = io.BytesIO()  # torch names paths only
    try:
        with _traceable(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's remarks on itself and on constants that it does not fold
            torch.onnx.export(
                _FromPixels(backbone),
                (pixels,),
                buffer,
                dynamo=False,
                input_names=["pixels"],
                output_names=["features"],
                dynamic_axes={"pixels": {0: "n"}, "features": {0: "n"}},
                opset_version=_OPSET,
            )
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(
            f"backbone {backbone.name!r}: cannot be exported to ONNX ({type(error).__name__})."
        ) from error
    return buffer.getvalue()


@contextmanager
def _traceable() -> Iterator[None]:
    """Attention in single steps, which ONNX has; one thread, since one image is not worth handing out to several."""
    n_threads, fast_attention = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        torch.backends.mha.set_fastpath_enabled(fast_attention)
