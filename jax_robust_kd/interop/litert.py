"""Networks as LiteRT (.tflite), for phones: float, int8 weights, full int8.

`jax.export` -> litert-converter -> ai-edge-litert, without TensorFlow. The
converter's calls are those of its version 0.5.
"""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from jax_robust_kd.core import Array, LogitsFn, UserError
from jax_robust_kd.runtime import target

_SIGNATURE = 'serving_default'
_EXTRA = 'pip install "jax_robust_kd[litert]"'


def to_litert(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> bytes:
  """Converts a network for one image at a time.

  Args:
    logits_fn: [1, H, W, C] float32 in [0, 1] -> [1, K], with its weights.
    image_shape: (H, W, C).

  Returns:
    The file, with input 'image' and output 'logits'.

  Raises:
    UserError: the converter is not installed, or lacks an operation.
  """
  converter: Any = _import('litert_converter.converter_api_ext')
  ir: Any = _import('litert_converter.mlir.ir')
  passes: Any = _import('litert_converter.mlir.passmanager')

  def call(image: Array) -> Array:  # a new function, so that it is traced
    return logits_fn(image)

  with target.compile_for('portable'):
    shape = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    exported = export.export(jax.jit(call))(shape)
  context = ir.Context()
  converter.prepare_mlir_context(context)
  with context:
    try:
      module = ir.Module.parse(exported.mlir_module())
      converter.set_signature(
        module.operation, _SIGNATURE, ['image'], ['logits']
      )
      manager = passes.PassManager('builtin.module')
      config = converter.ConvertToTFLConfig()
      converter.run_convert_to_tfl_passes(module, manager, config)
      return converter.export_flatbuffer_to_bytes(module.operation)
    except Exception as error:  # the converter raises kinds of its own
      raise UserError(
        'the network has an operation that LiteRT lacks: '
        f'{str(error).splitlines()[0]}; export to stablehlo instead'
      ) from None


def quantize(
  content: bytes, calibration: np.ndarray | None, full: bool
) -> bytes:
  """Quantizes a LiteRT file to 8 bits.

  Args:
    content: from `to_litert`.
    calibration: [N, H, W, C] float32 training images, for full int8.
    full: whether activations are int8 too, and not the weights alone.

  Raises:
    UserError: the quantizer is not installed.
  """
  quantizer: Any = _import('ai_edge_quantizer.quantizer')
  recipe: Any = _import('ai_edge_quantizer.recipe')
  work = quantizer.Quantizer(content)
  if not full:
    work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    return bytes(work.quantize(enable_progress_report=False).quantized_model)
  assert calibration is not None
  work.load_quantization_recipe(recipe.static_wi8_ai8())
  images = [{'image': image[None]} for image in calibration]
  statistics = work.calibrate({_SIGNATURE: images})
  done = work.quantize(statistics, enable_progress_report=False)
  return bytes(done.quantized_model)


def make_runner(
  content: bytes, threads: int = 1
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns images [N, H, W, C] -> logits [N, K], run by LiteRT itself.

  Raises:
    UserError: the runtime is not installed.
  """
  interpreter: Any = _import('ai_edge_litert.interpreter')
  work = interpreter.Interpreter(model_content=content, num_threads=threads)
  run = work.get_signature_runner(_SIGNATURE)
  given = run.get_input_details()['image']
  returned = run.get_output_details()['logits']

  def one(image: np.ndarray) -> np.ndarray:
    logits = run(image=_to_type(image[None], given))['logits']
    return _to_float(logits, returned)

  return lambda images: np.concatenate([one(image) for image in images])


def _to_type(values: np.ndarray, details: dict) -> np.ndarray:
  """Quantizes float32 values as a tensor asks for."""
  if details['dtype'] == np.float32:
    return values.astype(np.float32)
  scale, zero = details['quantization']
  limits = np.iinfo(details['dtype'])
  whole = np.rint(values / scale) + zero
  return np.clip(whole, limits.min, limits.max).astype(details['dtype'])


def _to_float(values: np.ndarray, details: dict) -> np.ndarray:
  if details['dtype'] == np.float32:
    return values
  scale, zero = details['quantization']
  return ((values.astype(np.float32) - zero) * scale).astype(np.float32)


def count_operations(content: bytes) -> dict[str, int]:
  """Returns the name of each operation of a LiteRT file and how often it is."""
  interpreter: Any = _import('ai_edge_litert.interpreter')
  work = interpreter.Interpreter(
    model_content=content,
    experimental_op_resolver_type=(
      interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    ),
  )
  work.allocate_tensors()
  return dict(Counter(op['op_name'] for op in work._get_ops_details()))


def _import(name: str) -> Any:
  try:
    return import_module(name)
  except ImportError:
    package = name.partition('.')[0].replace('_', '-')
    raise UserError(f'an export to litert needs {package}: {_EXTRA}') from None
