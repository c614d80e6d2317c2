"""Whether a known teacher classifies as well as was published."""

from jax_robust_kd import data
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.networks import Network, in_precision
from jax_robust_kd.runtime import console

_IMAGES = 1000
_TOLERANCE = 1.0  # points


def check_clean(
  network: Network, dataset: data.Dataset, settings: evaluate.Settings
) -> None:
  """Compares clean accuracy with the published one, and says if it is off.

  Args:
    network: of the list, or any other, which passes.
    dataset: whose first test images are classified.
    settings: of the evaluation; its suite does not count.
  """
  known = network.published
  if known is None:
    return
  if known.dataset != dataset.name:
    console.say(
      f'{known.name} is known for {known.dataset}, and data set '
      f'{dataset.name!r} is another: its published accuracy says nothing here'
    )
    return
  classify = evaluate.make_split_attack(
    in_precision(network, 'float32'),
    'clean',
    settings.budget,
    settings.seed,
    settings.batch_size,
  )
  count = min(_IMAGES, len(dataset.test.label))
  test = data.Split(*(part[:count] for part in dataset.test))
  measured = 100 * float((classify(network.variables, test).margin < 0).mean())
  line = (
    f'{known.name}: {measured:.1f} % clean on {count} test images, '
    f'{known.clean:.2f} % published'
  )
  if abs(measured - known.clean) > _TOLERANCE:
    line += (
      ': WARNING, they differ by more than 1 point; check file, architecture '
      'and normalization'
    )
  console.say(line)
