"""ONNX Runtime's own file format, and the list of operators that a reduced build of it needs."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from pathlib import Path

from ..errors import BundleError
from ..scratch import scratch_folder


def convert_to_ort(model: Path) -> tuple[Path, Path]:
    """Write ``<name>.ort`` and ``<name>.required_operators.config`` beside an ONNX file; their paths.

    With ONNX Runtime's ``fixed`` style: all optimizations that do not depend on the device are made now. The configuration
    is what a reduced build takes as ``--include_ops_by_config``. Raises :class:`BundleError` where ONNX Runtime cannot
    convert the graph.
    """
    import onnxruntime as ort
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    with scratch_folder("ort") as scratch:
        work = Path(scratch)
        # The converter takes every model of a folder, so it gets one of its own.
        for path in model.parent.glob(f"{model.stem}.onnx*"):
            shutil.copyfile(path, work / path.name)
        logging.disable(logging.INFO)
        # A warning for every slot, from a session that the converter makes; 2 is the level ONNX Runtime starts with.
        ort.set_default_logger_severity(3)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                # onnxruntime 1.32's converter leaves the file it reads back to the garbage collector (November 2026).
                warnings.simplefilter("ignore", ResourceWarning)
                convert_onnx_models_to_ort(
                    work / model.name, output_dir=work / "out", optimization_styles=[OptimizationStyle.Fixed]
                )
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise BundleError(f"{model.name} cannot be converted to ORT format: {error}") from error
        finally:
            logging.disable(logging.NOTSET)
            ort.set_default_logger_severity(2)
        (converted,) = (work / "out").glob("*.ort")
        (operators,) = (work / "out").glob("*.config")
        files = model.with_suffix(".ort"), model.with_suffix(".required_operators.config")
        shutil.copyfile(converted, files[0])
        shutil.copyfile(operators, files[1])
    return files
