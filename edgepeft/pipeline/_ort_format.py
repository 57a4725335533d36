"""ONNX Runtime's own file format, and the list of operators that a reduced build of it needs."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..errors import BundleError
from ..scratch import scratch_folder


def convert_to_ort(models: Sequence[Path], data: Sequence[Path] = ()) -> tuple[list[Path], Path]:
    """Write ``<name>.ort`` beside each ONNX file, and ``<name of the first>.required_operators.config``; their paths.

    With ONNX Runtime's ``fixed`` style: all optimizations that do not depend on the device are made now. The configuration
    is what a reduced build takes as ``--include_ops_by_config``; it lists the operators of all ``models``, which are the
    graphs of one variant. ``data`` are the files of their weights. Raises :class:`BundleError` where ONNX Runtime cannot
    convert a graph.
    """
    import onnxruntime as ort
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort

    names = ", ".join(model.name for model in models)
    with scratch_folder("ort") as scratch:
        work = Path(scratch)
        # The converter takes every model of a folder, so they get one of their own.
        for path in (*models, *data):
            shutil.copyfile(path, work / path.name)
        logging.disable(logging.INFO)
        # A warning for every slot, from a session that the converter makes; 2 is the level ONNX Runtime starts with.
        ort.set_default_logger_severity(3)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                # onnxruntime 1.32's converter leaves the file it reads back to the garbage collector (November 2026).
                warnings.simplefilter("ignore", ResourceWarning)
                convert_onnx_models_to_ort(work, output_dir=work / "out", optimization_styles=[OptimizationStyle.Fixed])
        except Exception as error:  # ONNX Runtime's exception types are not public
            raise BundleError(f"{names} cannot be converted to ORT format: {error}") from error
        finally:
            logging.disable(logging.NOTSET)
            ort.set_default_logger_severity(2)
        (operators,) = (work / "out").glob("*.config")
        written = [model.with_suffix(".ort") for model in models]
        for file in written:
            shutil.copyfile(work / "out" / file.name, file)
        config = models[0].with_suffix(".required_operators.config")
        shutil.copyfile(operators, config)
    return written, config
