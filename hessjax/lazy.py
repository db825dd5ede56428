"""An objective that pays for its penalties on some steps only."""

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
    """An objective with its penalties on every n-th step, n times as heavy.

    Called with a number for the step, it is one of its two parts and skips the other's work. Inside
    a traced function, where the step is not known, it branches at run time; what a skipped step
    does not evaluate is NaN among the metrics there (and ``jax_debug_nans`` stops at it).
    `train_step` compiles the parts separately.

    Attributes:
        penalized: the objective of steps 0, n, 2n, ...; weights are n times those of each step.
        plain: that of the steps between, the loss alone.
        every: n.
    """

    penalized: Objective
    plain: Objective
    every: int

    def at(self, step: int) -> Objective:
        """Return the part that this step takes."""
        return self.plain if step % self.every else self.penalized

    def map(self, transform: Callable[[Objective], Objective]) -> "Lazy":
        """Return this with both parts transformed, say with more metrics."""
        return Lazy(transform(self.penalized), transform(self.plain), self.every)

    def __call__(
        self, params: PyTree, batch: tuple, key: jax.Array, step: int | jax.Array = 0
    ) -> tuple[jax.Array, Metrics]:
        """Evaluate the part that this step takes."""
        if not isinstance(step, Tracer):
            return self.at(int(step))(params, batch, key, step)
        arguments = (params, batch, key, step)
        whole, every_metric = jax.eval_shape(self.penalized, *arguments)

        def plain(*arguments: PyTree) -> tuple[jax.Array, Metrics]:
            value, metrics = self.plain(*arguments)
            unknown = {
                name: jnp.full(metric.shape, jnp.nan, metric.dtype)
                for name, metric in every_metric.items()
                if name not in metrics
            }
            # A penalty of more digits than the loss widens the sum of both.
            return value.astype(whole.dtype), {**metrics, **unknown}

        return jax.lax.cond(step % self.every == 0, self.penalized, plain, *arguments)
