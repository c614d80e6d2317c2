"""Networks as ONNX, by PyTorch's exporter from the student's PyTorch form.

The road over PyTorch rather than from JAX: it holds on every JAX that this
package supports, and BatchNorm is folded into the convolutions.
"""

from collections.abc import Callable
import logging
from pathlib import Path
from typing import Any
import warnings

import flax.linen as nn
import numpy as np

from jax_robust_kd.core import PyTree, UserError
from jax_robust_kd.interop.torch_export import export_state, fields_of

_EXTRA = 'pip install "jax_robust_kd[onnx]"'


def to_onnx(
  path: Path, variables: PyTree, model: nn.Module, image_shape: tuple[int, ...]
) -> None:
  """Writes a network with input 'image' [N, C, H, W] and output 'logits'.

  Args:
    path: of the file.
    variables: {'params': ..., 'batch_stats': ...}.
    model: from models.build().
    image_shape: (H, W, C).

  Raises:
    UserError: an extra is missing, or the model has no PyTorch form.
  """
  state = export_state(variables, model)
  try:
    import onnxscript  # noqa: F401  # type: ignore[import-not-found]
    import torch  # type: ignore[import-not-found]
  except ImportError as error:
    raise UserError(f'an export to onnx needs {error.name}: {_EXTRA}') from None
  from jax_robust_kd.interop.torch_networks import Network

  height, width, channels = image_shape
  network = Network(type(model).__name__, channels, **fields_of(model))
  network.load_state_dict(
    {key: torch.from_numpy(value.copy()) for key, value in state.items()}
  )
  image = torch.zeros(2, channels, height, width)
  logging.getLogger('torch.onnx').setLevel(logging.ERROR)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    program: Any = torch.onnx.export(
      network.eval(), (image,), dynamo=True, verbose=False,
      input_names=['image'], output_names=['logits'],
      dynamic_shapes={'image': {0: torch.export.Dim('batch')}},
    )  # fmt: skip
  program.save(str(path))


def make_runner(
  path: Path, threads: int = 1
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns images [N, H, W, C] -> logits [N, K], run by onnxruntime.

  Raises:
    UserError: onnxruntime is not installed.
  """
  try:
    import onnxruntime  # type: ignore[import-not-found]
  except ImportError:
    raise UserError(f'to run ONNX install onnxruntime: {_EXTRA}') from None
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads
  session = onnxruntime.InferenceSession(
    str(path), options, providers=['CPUExecutionProvider']
  )
  return lambda images: session.run(
    None, {'image': images.astype(np.float32).transpose(0, 3, 1, 2)}
  )[0]
