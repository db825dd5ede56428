"""Square attack on one example: random search with square patches, from the logits alone."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hessjax._numerics import check_count, check_number, widen
from hessjax.attacks.attack import Attack, Logits, Outcome, search, with_options
from hessjax.attacks.balls import LpBall, check_center
from hessjax.losses import margin, misclassified

# From the source: the share of pixels in a square is halved after these proposals, counted from 0.
_HALVED_AFTER = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
# From the source, here in units of ε: avoids 0 / 0.
_TINY = 1e-12


class SquareState(NamedTuple):
    """One example under the Square attack, between two steps.

    Attributes:
        x: the first misclassified point or, as long as there is none, the one of least margin.
        margin: the margin of the logits at ``x``, a scalar.
        found: whether ``x`` is misclassified, a boolean scalar.
        key: random key of the proposals; each folds its own number into it.
        step: the number of proposals made.
    """

    x: jax.Array
    margin: jax.Array
    found: jax.Array
    key: jax.Array
    step: jax.Array


class Draws(NamedTuple):
    """The parts of a proposal that do not depend on the best point; all but the stage are random.

    Attributes:
        stage: how often the share of pixels has been halved.
        window: ``(2,)``, row and column where the square to change begins.
        source: ``(2,)``, the same for the square that it takes mass from, for ℓ2.
        signs: ``(C,)``, 1 or -1.
        turned: whether the tile is transposed, boolean scalar, for ℓ2.
    """

    stage: jax.Array
    window: jax.Array
    source: jax.Array
    signs: jax.Array
    turned: jax.Array


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return ``(H, W, C)``: the shape of an image, else the most nearly square one, C = 1.

    >>> image_shape((32, 30, 3)), image_shape((28, 28)), image_shape((12,))
    ((32, 30, 3), (28, 28, 1), (3, 4, 1))
    """
    if len(shape) not in {2, 3}:
        size = math.prod(shape)
        height = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
        shape = (height, size // height)
    height, width, channels = (*shape, 1)[:3]
    return height, width, channels


def side_lengths(ball: LpBall, shape: tuple[int, ...], initial_share: float) -> tuple[int, ...]:
    """Return the side lengths of the squares: for the first proposals, then after each halving."""
    shares = [initial_share / 2**halvings for halvings in range(len(_HALVED_AFTER) + 1)]
    sides = [max(round(math.sqrt(share * shape[0] * shape[1])), 1) for share in shares]
    if ball.order == 2:
        sides = [max(side, 3) // 2 * 2 + 1 for side in sides]
    return tuple(min(side, *shape[:2]) for side in sides)


def tile(side: int) -> np.ndarray:
    """Return the pattern of an ℓ2 proposal, ``(side, side)``: one half up, one half down, norm 1.

    At ℓ∞ distance d from its center, a half is proportional to ``Σ 1 / i²``, i from d + 1 on.
    """
    terms = 1 / np.arange(1, side // 2 + 2) ** 2
    sums = np.cumsum(terms[::-1])[::-1]
    halves = []
    for sign, rows in ((1, side // 2), (-1, side - side // 2)):
        i, j = np.ogrid[:rows, :side]
        half = sums[np.maximum(abs(i - rows // 2), abs(j - side // 2))]
        # For a single pixel the first half is empty.
        halves.append(sign * half / (np.linalg.norm(half) or 1))
    both = np.concatenate(halves)
    return both / np.linalg.norm(both)


def first_point(ball: LpBall, x: jax.Array, key: jax.Array) -> jax.Array:
    """Draw the first point for an image x: stripes for ℓ∞, a grid of tiles for ℓ2, then clipped.

    A stripe is ±ε in one column and channel. A tile is a fifth of the image high and wide, has a
    random sign per channel and may be transposed; all tiles together have norm ε.
    """
    for_signs, for_turns = jax.random.split(key)
    (height, width, channels), epsilon = x.shape, jnp.asarray(ball.epsilon, x.dtype)
    if ball.order != 2:
        signs = jax.random.rademacher(for_signs, (1, width, channels), x.dtype)
        return jnp.clip(x + epsilon * signs, *ball.bounds)
    side = max(min(height, width) // 5, 1)
    tiles = (height // side, width // side)
    signs = jax.random.rademacher(for_signs, (*tiles, 1, 1, channels), x.dtype)
    turned = jax.random.bernoulli(for_turns, shape=(*tiles, 1, 1))
    pattern = jnp.asarray(tile(side) / math.sqrt(signs.size), x.dtype)
    grid = jnp.where(turned, pattern.T, pattern)[..., None] * signs
    grid = jnp.concatenate(jnp.concatenate(grid, axis=1), axis=1)
    spare = np.subtract(x.shape, grid.shape)
    change = jnp.pad(grid, np.stack([spare // 2, spare - spare // 2], axis=1))
    return jnp.clip(x + epsilon * change, *ball.bounds)


def draw(shape: tuple[int, ...], sides: tuple[int, ...], key: jax.Array, step: jax.Array) -> Draws:
    """Draw proposal number ``step``, for an image of this shape and squares of these sides."""
    words = jax.random.bits(jax.random.fold_in(key, step), (5 + shape[2],), jnp.uint32)
    stage = jnp.sum(step > _HALVED_AFTER)
    # As in the source, no square reaches the image's end unless there is no other place.
    places = jnp.maximum(np.array(shape[:2]) - jnp.asarray(sides)[stage], 1).astype(jnp.uint32)
    window, source = ((words[n : n + 2] % places).astype(jnp.int32) for n in (0, 2))
    bits = (words[4:] >> 31).astype(bool)
    return Draws(stage, window, source, jnp.where(bits[1:], 1, -1), bits[0])


def propose(
    ball: LpBall, x: jax.Array, best: jax.Array, sides: tuple[int, ...], draws: Draws
) -> jax.Array:
    r"""Return the point to try next for an image x, near the best point so far.

    For ℓ∞ the change in a square W becomes ±ε, with a sign per channel. For ℓ2, let δ be the
    change of a channel in units of ε, Δ that of all C channels, S another square, t the tile. Then

    .. math:: \delta_W \leftarrow \frac{\nu}{\|\nu\|} \sqrt{\frac{(1 - \|\Delta\|^2)_+}{C} +
        \|\delta_{W \cup S}\|^2}, \quad \nu = \pm t + \frac{\delta_W}{\|\delta_W\|}, \qquad
        \delta_{S \setminus W} \leftarrow 0,

    and Δ is scaled to norm 1. The result is clipped to the box.
    """
    side = jnp.asarray(sides)[draws.stage]
    rows, columns = jnp.arange(x.shape[0]), jnp.arange(x.shape[1])

    def square(corner: jax.Array) -> jax.Array:
        i, j = (rows - corner[0])[:, None], (columns - corner[1])[None]
        return ((i >= 0) & (i < side) & ((j >= 0) & (j < side)))[..., None]

    window, source, signs = square(draws.window), square(draws.source), draws.signs[None, None]
    if ball.order != 2:
        # The source adds ±2ε and clips to the ball: from any point of the ball that ends at ±ε.
        end = x + jnp.asarray(ball.epsilon, x.dtype) * signs.astype(x.dtype)
        return jnp.where(window, jnp.clip(end, *ball.bounds), best)
    wide = widen(x)
    tiles = np.stack([np.pad(tile(n), (0, max(sides) - n)) for n in sides])
    # Outside the window it does not matter which entry of the tiles is read.
    i, j = (rows - draws.window[0])[:, None], (columns - draws.window[1])[None]
    i, j = jnp.where(draws.turned, j, i), jnp.where(draws.turned, i, j)
    pattern = jnp.asarray(tiles, wide.dtype)[draws.stage, i, j][..., None]
    epsilon = jnp.asarray(ball.epsilon, wide.dtype)
    change = (widen(best) - wide) / jnp.where(epsilon > 0, epsilon, 1)  # zero at a traced radius 0
    masks = window, source & ~window, ~(source | window)
    total = partial(jnp.sum, axis=(0, 1), keepdims=True)
    inside, taken, kept = (total(jnp.where(mask, change**2, 0)) for mask in masks)
    free = jnp.maximum(1 - jnp.sum(inside + taken + kept), 0) / x.shape[2]
    new = signs * pattern + change / (_TINY + jnp.sqrt(inside))
    size = total(jnp.where(window, new**2, 0))
    scale = jnp.sqrt(free + inside + taken) / (_TINY + jnp.sqrt(size))
    change = jnp.where(window, scale * new, jnp.where(source, 0, change))
    norm = jnp.sqrt(jnp.sum(kept + scale**2 * size))
    return jnp.clip((wide + epsilon / (_TINY + norm) * change).astype(x.dtype), *ball.bounds)


def square_init(
    logits_fn: Logits, x: ArrayLike, y: ArrayLike, ball: LpBall, key: jax.Array, *, run: object = 0
) -> SquareState:
    """Start a run at a random point, which costs one evaluation.

    Arguments are those of `square`; the run's number is ignored, as each run has its own key.
    """
    del run
    x = check_center(ball, x)
    for_start, for_steps = jax.random.split(key)
    point = first_point(ball, x.reshape(image_shape(x.shape)), for_start).reshape(x.shape)
    return SquareState(point, *_evaluate(logits_fn, point, y), for_steps, jnp.int32(0))


def square_step(
    logits_fn: Logits,
    x: jax.Array,
    y: ArrayLike,
    ball: LpBall,
    state: SquareState,
    *,
    initial_share: float = 0.8,
) -> SquareState:
    """Try one proposal, which costs one evaluation; keep it if misclassified or of lower margin.

    Arguments are those of `square`, and the state from `square_init` or the previous step. Once a
    point is misclassified, only the number of steps changes.
    """
    shape = image_shape(x.shape)
    sides = side_lengths(ball, shape, initial_share)
    draws = draw(shape, sides, state.key, state.step)
    point = propose(ball, x.reshape(shape), state.x.reshape(shape), sides, draws).reshape(x.shape)
    value, wrong = _evaluate(logits_fn, point, y)
    better = ~state.found & (wrong | (value < state.margin))
    point, value = jnp.where(better, point, state.x), jnp.where(better, value, state.margin)
    return SquareState(point, value, state.found | wrong, state.key, state.step + 1)


def square_outcome(x: jax.Array, state: SquareState, ball: LpBall) -> Outcome:
    """Return the first misclassified point or, if there is none, the one of least margin."""
    del x, ball
    return Outcome(state.x, jnp.where(state.found, jnp.inf, -state.margin), state.found)


def square_attack(
    *, num_steps: int = 5000, num_restarts: int = 1, initial_share: float = 0.8
) -> Attack:
    """Return the Square attack as an `Attack` for `auto_attack`; arguments as for `square`."""
    check_number("initial_share", initial_share, positive=True)
    counts = check_count("num_steps", num_steps), check_count("num_restarts", num_restarts)
    step = with_options(square_step, initial_share=initial_share)
    return Attack("square", square_init, step, square_outcome, *counts, differentiates=False)


def square(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    num_steps: int = 5000,
    num_restarts: int = 1,
    initial_share: float = 0.8,
    unroll: int | bool = 1,
) -> jax.Array:
    r"""Search the ball with random squares, from logits alone: vanishing gradients do not matter.

    .. math:: x_{i+1} = \arg\min_{x' \in \{x_i, P(x_i)\}} m(x'), \quad m = z_y - \max_{j\ne y} z_j

    where P changes a random square: for ℓ∞ to ``x ± ε``, for ℓ2 by a pattern and the mass of a
    second square. The share p of pixels in a square is halved after 10, 50, 200,
    500, 1000, 2000, 4000, 6000 and 8000 proposals, whatever ``num_steps`` is.

    It follows the reference implementation proposal for proposal, even in that no square reaches
    the last row or column unless it fills the image. It departs in that places, signs and patterns
    are drawn per example, not shared by a batch; tied logits count as in `misclassified`; and the
    first grid for ℓ2 is centered in images that are small or not square.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``.
        x: the example, in the box: an image ``(H, W)`` or ``(H, W, C)``. Any other shape is viewed
            as the most nearly square ``(H, W, 1)`` of its size.
        y: its label, a whole number.
        ball: where to search.
        key: source of randomness; more restarts repeat the runs of fewer, and never do worse.
        num_steps: number of proposals per restart.
        num_restarts: number of starts, one after the other.
        initial_share: p for the first proposals.
        unroll: steps per iteration of the compiled loop.

    Returns:
        The attacked example, in ball ∩ box (up to rounding), like ``x``: x itself if it is
        misclassified, else the first misclassified point, else the point of least margin. It is
        finite even if the logits are not; NaN logits count as misclassified.

    Raises:
        ValueError: if x is outside the box, a count is less than 1 or the share is not positive.
        TypeError: if x is not floating point or a count is not a whole number.

    Cost: ``num_restarts × (num_steps + 1) + 1`` evaluations. Call it inside ``jax.jit``: outside,
    each call compiles its loop again. Source: Andriushchenko, Croce, Flammarion, Hein, Square
    Attack, 2020.

    >>> logits_fn = lambda x: jnp.array([0.0, 1.0]) * (0.75 - x[0, 0])
    >>> x, ball = jnp.full((4, 4), 0.5), LpBall(0.3, jnp.inf)
    >>> x_adv = square(logits_fn, x, 1, ball, jax.random.key(0), num_steps=20)
    >>> bool(x_adv[0, 0] > 0.75)
    True
    """
    attack = square_attack(
        num_steps=num_steps, num_restarts=num_restarts, initial_share=initial_share
    )
    return search(attack, logits_fn, x, y, ball=ball, key=key, unroll=unroll)


def _evaluate(logits_fn: Logits, point: jax.Array, y: ArrayLike) -> tuple[jax.Array, jax.Array]:
    logits = logits_fn(point)
    value = margin(logits, y)
    # Infinite logits may have a NaN margin: any point with a margin is better.
    return jnp.where(jnp.isnan(value), jnp.inf, value), misclassified(logits, y)
