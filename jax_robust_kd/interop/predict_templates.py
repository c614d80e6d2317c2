"""The `predict.py` beside each export: twenty lines, the runtime and Pillow."""

from jax_robust_kd.data.decode import CENTRE

_HEAD = '''"""Classifies a photo: python predict.py PHOTO.

Needs {needs} and Pillow.
"""

import sys

import numpy as np
from PIL import Image, ImageOps

CLASS_NAMES = {class_names}
HEIGHT, WIDTH, CHANNELS = {shape}

photo = ImageOps.exif_transpose(Image.open(sys.argv[1]))
photo = photo.convert('L' if CHANNELS == 1 else 'RGB')
if photo.size != (WIDTH, HEIGHT):
  short, scale = min(photo.size), round(HEIGHT / {centre})
  width, height = (max(HEIGHT, side * scale // short) for side in photo.size)
  left, top = round((width - WIDTH) / 2), round((height - HEIGHT) / 2)
  photo = photo.resize((width, height), Image.Resampling.BILINEAR)
  photo = photo.crop((left, top, left + WIDTH, top + HEIGHT))
image = np.asarray(photo, np.float32).reshape(1, HEIGHT, WIDTH, CHANNELS) / 255
'''
_TAIL = """
order = np.argsort(-logits)[:5]
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for k in order:
  print(f'{100 * shares[k]:5.1f} %  {CLASS_NAMES[k]}')
"""
_RUN = {
  'litert': (
    'ai-edge-litert',
    """
from ai_edge_litert.interpreter import Interpreter

run = Interpreter('model.tflite').get_signature_runner('serving_default')
logits = run(image=image)['logits'][0]
""",
  ),
  'onnx': (
    'onnxruntime',
    """
import onnxruntime

session = onnxruntime.InferenceSession('model.onnx')
logits = session.run(None, {'image': image.transpose(0, 3, 1, 2)})[0][0]
""",
  ),
  'torch': (
    'torch',
    """
import torch

import model

with torch.no_grad():
  chw = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  logits = model.load()(chw)[0].numpy()
""",
  ),
  'stablehlo': (
    'jax, flatbuffers',
    """
from pathlib import Path

from jax import export

content = bytearray(Path('model.stablehlo').read_bytes())
logits = np.asarray(export.deserialize(content).call(image))[0]
""",
  ),
}


def predict_source(
  target: str, class_names: tuple[str, ...], shape: tuple[int, ...]
) -> str:
  """Returns the text of predict.py.

  Args:
    target: 'litert', 'onnx', 'torch' or 'stablehlo'.
    class_names: [K].
    shape: (H, W, C) of the images.
  """
  needs, run = _RUN[target]
  head = _HEAD.format(
    needs=needs,
    class_names=repr(list(class_names)),
    shape=tuple(shape),
    centre=CENTRE,
  )
  return head + run + _TAIL
