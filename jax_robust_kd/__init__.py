"""Adversarially robust knowledge distillation in JAX."""

__version__ = '0.1.0'


def load(workdir, checkpoint='best'):
  """Loads a trained network, which maps images to logits.

  See `classifier.Classifier`. Nothing else is imported with this package.

    model = jax_robust_kd.load('runs/quickstart')
    logits = model(images)
    names, probabilities = model.predict(images)
    result = attacks.autoattack(model, images, labels, epsilon=8 / 255)

  Args:
    workdir: of a run.
    checkpoint: 'best' on validation images, or 'last'.

  Raises:
    UserError: there is no such run or checkpoint.
  """
  from jax_robust_kd import classifier

  return classifier.load(workdir, checkpoint)
