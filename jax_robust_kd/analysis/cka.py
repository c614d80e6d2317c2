"""How alike two sets of features are, in float64 on the host."""

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
  """Linear centered kernel alignment (Kornblith et al. 2019, section 3).

  ||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F) of features whose mean over the
  images was taken off. Rotating a set of features or scaling it as a whole
  changes nothing. Of unrelated features with a and b directions of equal weight
  it is about sqrt(a b) / N, so there should be many more images than features.

  Args:
    x: [N, a], features of N images.
    y: [N, b], others of the same images.

  Returns:
    A number in [0, 1]; 0 where a set does not change from image to image.
  """
  x, y = (_centered(values) for values in (x, y))
  scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  return float(np.sum((x.T @ y) ** 2) / scale) if scale > 0 else 0.0


def _centered(values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  return values - values.mean(axis=0)


def mean_cosine(x: np.ndarray, y: np.ndarray) -> float:
  """Cosine of the angle between x_i and y_i, averaged over the images i.

  Args:
    x: [N, d], not centered.
    y: [N, d].

  Returns:
    A number in [-1, 1]; where a vector is 0 its cosine counts as 0.
  """
  x, y = (np.asarray(values, np.float64) for values in (x, y))
  scale = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
  product = np.sum(x * y, axis=1)
  return float(np.mean(product / np.where(scale > 0, scale, 1.0)))
