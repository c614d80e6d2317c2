"""PyTorch state_dicts of our models, made from their keys by golden/fill.py."""

import importlib.util
import pathlib

import flax
import jax
import jax.numpy as jnp

from jax_robust_kd.interop import torch_import

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def _load_fill():
  spec = importlib.util.spec_from_file_location('fill', GOLDEN / 'fill.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.fill


fill = _load_fill()


def template(model, channels=3):
  image = jnp.zeros((1, 8, 8, channels))
  return jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )


def torch_state(model, key_of, channels=3):
  """A state_dict of the model, made from the names alone."""
  state = {}
  for path, leaf in flax.traverse_util.flatten_dict(
    template(model, channels)
  ).items():
    shape = leaf.shape
    if len(shape) == 4:
      shape = (shape[3], shape[2], shape[0], shape[1])
    key = key_of(path)
    state[key] = fill(key, shape[::-1] if len(shape) == 2 else shape)
  return state


def layout_state(model, layout, channels=3):
  rule = torch_import.LAYOUTS[layout][2]
  return torch_state(
    model, lambda path: torch_import.torch_key(path, rule), channels
  )
