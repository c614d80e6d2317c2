"""Methods by name. A new one is one file, one config and one line here."""

from collections.abc import Callable

from jax_robust_kd.core import Method
from jax_robust_kd.methods.adaad import adaad
from jax_robust_kd.methods.advfunmatch import advfunmatch
from jax_robust_kd.methods.kd import kd
from jax_robust_kd.methods.natural import natural
from jax_robust_kd.methods.pgd_at import pgd_at
from jax_robust_kd.methods.rslad import rslad
from jax_robust_kd.methods.trades import trades

METHODS: dict[str, Callable[..., Method]] = {
  'adaad': adaad,
  'advfunmatch': advfunmatch,
  'kd': kd,
  'natural': natural,
  'pgd_at': pgd_at,
  'rslad': rslad,
  'trades': trades,
}
