"""An objective that evaluates its penalties only on some steps."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.core import Tracer

from hessjax._numerics import PyTree

Metrics = dict[str, jax.Array]
Objective = Callable[..., tuple[jax.Array, Metrics]]


@dataclass(frozen=True)
class Lazy:
    """An objective that has its penalties on every n-th step, with n times the weight.

    Called with a concrete step, it evaluates only the part that is due. Inside a traced function,
    where the step is unknown, it branches at run time, and metrics of penalties that a step skips
    are NaN (``jax_debug_nans`` stops at them), so they must be floating point. `train_step`
    compiles the two parts separately.

    Attributes:
        penalized: the objective on steps 0, n, 2n, ..., whose weights include the factor n.
        plain: the objective on all other steps, the loss alone.
        every: n.
    """

    penalized: Objective
    plain: Objective
    every: int

    def at(self, step: int) -> Objective:
        """Return the part that is due on this step."""
        return self.plain if step % self.every else self.penalized

    def map(self, transform: Callable[[Objective], Objective]) -> "Lazy":
        """Return a `Lazy` with both parts transformed, for example to add metrics."""
        return Lazy(transform(self.penalized), transform(self.plain), self.every)

    def __call__(
        self, params: PyTree, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        """Evaluate the part that is due on this step."""
        if not isinstance(step, Tracer):
            return self.at(int(step))(params, batch, key, step)
        arguments = (params, batch, key, step)
        whole, every_metric = jax.eval_shape(self.penalized, *arguments)
        known = jax.eval_shape(self.plain, *arguments)[1]
        for name, metric in every_metric.items():
            if name not in known and not jnp.issubdtype(metric.dtype, jnp.floating):
                raise TypeError(
                    f"the metric {name!r}, NaN on the steps that skip it, must be floating point, "
                    f"got {metric.dtype}"
                )

        def plain(*arguments: PyTree) -> tuple[jax.Array, Metrics]:
            value, metrics = self.plain(*arguments)
            unknown = {
                name: jnp.full(metric.shape, jnp.nan, metric.dtype)
                for name, metric in every_metric.items()
                if name not in known
            }
            # A penalty of higher precision than the loss widens their sum.
            return value.astype(whole.dtype), {**metrics, **unknown}

        return jax.lax.cond(step % self.every == 0, self.penalized, plain, *arguments)
