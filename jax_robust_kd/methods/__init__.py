"""Methods by name. A new one is one file, one config and one line here.

Notation of the docstrings: S is the student and T the teacher, both as class
probabilities; x is a clean image, x' an adversarial one, y its label. KL(p ||
q) is `losses.kl_divergence(q, p)`, KL_t the same at temperature t, CE is
`losses.cross_entropy`; both are in nats and summed over classes. Gradients
never flow into a teacher's weights. "Loss: confirmed by ..." names the source
that a loss was checked against; without one it is called reconstructed.
"""

from collections.abc import Callable

from jax_robust_kd.core import Method
from jax_robust_kd.methods.adaad import adaad
from jax_robust_kd.methods.adaiad import adaiad
from jax_robust_kd.methods.advfunmatch import advfunmatch
from jax_robust_kd.methods.akd2 import akd2
from jax_robust_kd.methods.ard import ard
from jax_robust_kd.methods.at import at
from jax_robust_kd.methods.crd import crd
from jax_robust_kd.methods.darwin import darwin
from jax_robust_kd.methods.dgad import dgad
from jax_robust_kd.methods.fitnets import fitnets
from jax_robust_kd.methods.funmatch import funmatch
from jax_robust_kd.methods.gacd import gacd
from jax_robust_kd.methods.iad import iad
from jax_robust_kd.methods.igam import igam
from jax_robust_kd.methods.igdm import igdm
from jax_robust_kd.methods.kd import kd
from jax_robust_kd.methods.kdiga import kdiga
from jax_robust_kd.methods.mart import mart
from jax_robust_kd.methods.mixacm import mixacm
from jax_robust_kd.methods.mtard import mtard
from jax_robust_kd.methods.natural import natural
from jax_robust_kd.methods.peeraid import peeraid
from jax_robust_kd.methods.pgd_at import pgd_at
from jax_robust_kd.methods.rkd import rkd
from jax_robust_kd.methods.rrm import rrm
from jax_robust_kd.methods.rslad import rslad
from jax_robust_kd.methods.saad import saad
from jax_robust_kd.methods.trades import trades

METHODS: dict[str, Callable[..., Method]] = {
  'adaad': adaad,
  'adaiad': adaiad,
  'advfunmatch': advfunmatch,
  'akd2': akd2,
  'ard': ard,
  'at': at,
  'crd': crd,
  'darwin': darwin,
  'dgad': dgad,
  'fitnets': fitnets,
  'funmatch': funmatch,
  'gacd': gacd,
  'iad': iad,
  'igam': igam,
  'igdm': igdm,
  'kd': kd,
  'kdiga': kdiga,
  'mart': mart,
  'mixacm': mixacm,
  'mtard': mtard,
  'natural': natural,
  'peeraid': peeraid,
  'pgd_at': pgd_at,
  'rkd': rkd,
  'rrm': rrm,
  'rslad': rslad,
  'saad': saad,
  'trades': trades,
}

__all__ = ['METHODS', *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]
