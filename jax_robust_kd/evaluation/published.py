"""Whether a known teacher classifies as well as was published."""

from jax_robust_kd import data
from jax_robust_kd.config import Config
from jax_robust_kd.evaluation import evaluate
from jax_robust_kd.networks import Network, in_precision
from jax_robust_kd.runtime import console
from jax_robust_kd.threat import make_budget

_IMAGES = 1000
_TOLERANCE = 1.0  # points


def check_clean(c: Config, network: Network, dataset: data.Dataset) -> None:
  """Compares clean accuracy with the published one, and says if it is off.

  Args:
    c: for batch size and seed.
    network: of the list, or any other, which passes.
    dataset: whose first test images are classified.
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
    make_budget(c),
    c.seed,
    c.eval.batch_size,
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
