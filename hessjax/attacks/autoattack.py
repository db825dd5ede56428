"""AutoAttack: four attacks, one after the other, each on what withstood those before."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from hessjax._numerics import check_count, check_key
from hessjax._placement import mesh_of, replicated
from hessjax.attacks import batches, checks
from hessjax.attacks.apgd import apgd_attack
from hessjax.attacks.attack import Attack, Logits, fitting
from hessjax.attacks.balls import LpBall, distance
from hessjax.attacks.fab import fab_attack
from hessjax.attacks.square import square_attack
from hessjax.losses import dlr_loss

STANDARD: tuple[Attack, ...] = (
    apgd_attack(name="apgd-ce"),
    apgd_attack(num_targets=9),
    fab_attack(num_targets=9),
    square_attack(),
)
"""The standard version, under which the literature reports robust accuracies."""

PLUS: tuple[Attack, ...] = (
    apgd_attack(name="apgd-ce", num_restarts=5),
    apgd_attack(name="apgd-dlr", loss=dlr_loss, num_restarts=5),
    fab_attack(num_targets=0, num_restarts=5),
    square_attack(),
    apgd_attack(num_targets=9),
    fab_attack(num_targets=9),
)
"""The version with restarts: slightly stronger, for about twice the cost."""

ROBUST, MISCLASSIFIED = -1, -2
"""In ``broken_by``: broken by no attack, and misclassified before any."""


class AttackResult(NamedTuple):
    """What AutoAttack found.

    Attributes:
        x: adversarial inputs, ``(N, ...)``: the point that broke the example, or else the example.
        robust: ``(N,)`` boolean: classified correctly under every attack.
        broken_by: ``(N,)``, the index of the attack that broke the example; -1 for none, -2 where
            it was misclassified from the start.
        distance: ``(N,)``, from the example to x in the norm of the ball; 0 if x is the example.
        warnings: sentences, each a reason to mistrust the result.
    """

    x: jax.Array
    robust: jax.Array
    broken_by: jax.Array
    distance: jax.Array
    warnings: tuple[str, ...]


class Progress(NamedTuple):
    """How far AutoAttack has come; enough to resume from.

    Attributes:
        x: adversarial inputs so far, ``(N, ...)``.
        broken_by: as in `AttackResult`, so far, ``(N,)``.
        tried: how many runs each example has been through, ``(N,)``. The runs are numbered
            across all attacks; a run is a restart or a target.
        num_runs: the number of runs of all attacks.
        attack: name of the attack that is running.
        call: a description of the attacks and their steps, the ball and the box; progress with
            another description is refused.
    """

    x: jax.Array
    broken_by: np.ndarray
    tried: np.ndarray
    num_runs: int
    attack: str
    call: str


def auto_attack(
    logits_fn: Logits,
    x: ArrayLike,
    y: ArrayLike,
    ball: LpBall,
    key: jax.Array,
    *,
    attacks: Iterable[Attack] = STANDARD,
    batch_size: int | None = None,
    resume: Progress | AttackResult | None = None,
    on_batch: Callable[[Progress], None] | None = None,
) -> AttackResult:
    r"""Attack a batch of examples with AutoAttack and report which withstand it.

    The standard version is Auto-PGD with cross-entropy, Auto-PGD with the targeted DLR loss at nine
    targets, FAB at nine targets, and 5,000 queries of Square. Each attack gets only the examples
    that withstood those before. The share of robust examples is an upper bound on the accuracy in
    the ball.

    The remaining examples stay on the device, packed into batches of two fixed sizes, so nothing is
    recompiled as they become fewer. If x lies on a mesh with one axis, each device takes its share
    of a batch, and they exchange only what was found. Randomness depends only on the key and the
    example's index in x, so the result depends neither on the batch size nor on the devices.

    Args:
        logits_fn: maps one example to its logits of shape ``(C,)``, C at least 2. Pass weights as
            ``jax.tree_util.Partial(apply, params)``, so that networks of one architecture, and
            calls with several radii, share compiled code. Any other function is recompiled at
            every call with its weights at that time, and JAX keeps both until the process ends.
        x: the examples, ``(N, ...)``, floating point, in the box of the ball. `square` takes images
            to be ``(N, H, W)`` or ``(N, H, W, C)``: a model that wants channels first should
            transpose inside ``logits_fn``.
        y: their labels, ``(N,)``, whole numbers from 0 to C - 1.
        ball: where to search, ℓ2 or ℓ∞.
        key: source of randomness. If it is not a Threefry key, it seeds one, which is used instead.
        attacks: what to run, in this order: `STANDARD`, `PLUS` or your own tuple of
            ``apgd_attack(...)``, ``fab_attack(...)``, ``square_attack(...)`` or of any `Attack`.
            Build one of your own once: compiled code is cached by the attacks' functions.
        batch_size: number of examples at a time; by default 64 per device on CPUs, else 1024.
        resume: the last `Progress` that an interrupted call with the same arguments passed to
            ``on_batch`` (keys are not compared); or the result of other attacks on the same
            examples, or in a smaller ball. What is broken there is not attacked again, and keeps
            its point and its entry in ``broken_by``. Points must lie in this ball and box; whether
            they are misclassified is not checked again.
        on_batch: called after each batch, to show or save the progress.

    Returns:
        The `AttackResult`. An example whose logits have a NaN counts as broken, with a warning.
        Other warnings, with the thresholds of the reference implementation: outputs that differ
        from call to call, vanishing gradients, too few classes for an attack (there are never more
        targets than wrong classes, and undefined losses are replaced), and Square breaking more
        than 0.2 % of all examples after gradient-based attacks failed on them.

    Raises:
        ValueError: if x has entries outside the box, y has labels that are not classes, their
            lengths do not match, the outputs are probabilities instead of logits, there are no
            attacks, or ``resume`` belongs to another call or has a point outside ball or box.
        TypeError: if x is not floating point, y does not hold whole numbers, an entry of
            ``attacks`` is not an `Attack`, ``resume`` is neither progress nor a result, the outputs
            are not a single array, or the call is traced, as inside `jax.jit`.

    Cost: with ten classes, 1,900 gradients and 5,900 evaluations for an example that withstands
    everything. A batch is checked every ten steps and left once all of it is broken. Source: Croce,
    Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks, 2020. It follows the reference implementation except where `apgd`, `fab` and `square`
    say otherwise.

    >>> logits_fn = lambda x: jnp.array([1.0, -1.0]) * (x[0] - x[1])
    >>> x, y = jnp.array([[0.5, 0.2], [0.5, 0.4], [0.1, 0.2]]), jnp.array([0, 0, 0])
    >>> attacks = (apgd_attack(num_steps=20),)
    >>> ball = LpBall(0.1, jnp.inf)
    >>> result = auto_attack(logits_fn, x, y, ball, jax.random.key(0), attacks=attacks)
    >>> result.robust.tolist(), result.broken_by.tolist()
    ([True, False, False], [-1, 0, -2])
    """
    attacks = checks.check_attacks(attacks)
    check_key(key)
    x, y = checks.check_examples(x, y, ball)
    given = batches.problem(logits_fn, ball, x.dtype)
    checks.check_outside(given, x, y, key)
    keys = jax.vmap(partial(jax.random.fold_in, _by_itself(key)))(jnp.arange(len(x)))
    mesh = mesh_of(x)
    given, examples = replicated(mesh, (given, batches.Examples(x, y, keys)))
    x, size = examples.x, _size(batch_size, mesh)

    clean = _logits(given, x, size)
    checks.check_classes(clean, np.asarray(y))
    num_classes = clean.shape[1]
    chosen = [fitting(attack, num_classes) for attack in attacks]
    runs = [
        (place, attack, run)
        for place, attack in enumerate(chosen)
        for run in range(attack.num_runs)
    ]
    wrong = np.isnan(clean).any(axis=1) | (clean.argmax(axis=1) != np.asarray(y))
    broken_by, call = np.where(wrong, MISCLASSIFIED, ROBUST), _described(chosen, ball)
    progress = Progress(x, broken_by, np.zeros(len(x), int), len(runs), "", call)
    if isinstance(resume, AttackResult):
        resume = progress._replace(x=resume.x, broken_by=np.asarray(resume.broken_by))
    if resume is not None:
        progress = _resumed(resume, progress, ball)
    warnings = [
        *checks.class_warnings(attacks, num_classes),
        *checks.randomness_warnings(clean, _logits(given, x, size)),
    ]
    if any(attack.differentiates for attack in attacks):
        slopes = _slopes(given, examples, np.flatnonzero(~wrong), size)
        warnings += checks.gradient_warnings(slopes)
    for position, (place, attack, run) in enumerate(runs):
        left = np.flatnonzero((progress.broken_by == ROBUST) & (progress.tried <= position))
        for index, used in batches.split(left, size):
            kept = batches.run_batch(attack, given, examples, index, place=place, run=run)
            tried, broken_by = progress.tried.copy(), progress.broken_by.copy()
            tried[index] = position + 1
            broken_by[index[:used][np.asarray(kept.broken)[:used]]] = place
            x_adv = batches.put(progress.x, index, kept.x, used)
            progress = Progress(x_adv, broken_by, tried, len(runs), attack.name, call)
            if on_batch is not None:
                on_batch(progress)
    warnings += checks.nan_warnings(clean, _logits(given, progress.x, size), progress.broken_by)
    # What an earlier result had broken was broken by its attacks, not by these.
    by_these = progress.broken_by[progress.tried > 0]
    warnings += checks.square_warnings(attacks, by_these, len(x))
    return AttackResult(
        progress.x,
        jnp.asarray(progress.broken_by == ROBUST),
        jnp.asarray(progress.broken_by),
        jax.vmap(partial(distance, ball))(progress.x - x),
        tuple(warnings),
    )


def _by_itself(key: jax.Array) -> jax.Array:
    """Return a Threefry key, whose numbers do not depend on the rest of a batch."""
    threefry = "threefry2x32"
    if str(jax.random.key_impl(key)) == threefry:
        return key
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl=threefry)


def _size(given: int | None, mesh: Mesh | None) -> int:
    """Return the batch size: the given one, rounded up so that devices get equal shares."""
    devices = 1 if mesh is None else mesh.size
    if given is None:
        return devices * (64 if jax.default_backend() == "cpu" else 1024)
    size = check_count("batch_size", given)
    # The short batches, a quarter of this, must be divisible, too.
    return size if mesh is None else -(-size // (4 * devices)) * 4 * devices


def _logits(given: batches.Problem, x: jax.Array, size: int) -> np.ndarray:
    """Return the logits of all examples, ``(N, C)``, on the host."""
    parts = [
        (batches.logits(given, x, i), used) for i, used in batches.split(np.arange(len(x)), size)
    ]
    checks.check_outside(parts)  # weights that the function closes over may be traced
    return np.concatenate([np.asarray(found)[:used] for found, used in parts])


def _slopes(
    given: batches.Problem, examples: batches.Examples, left: np.ndarray, size: int
) -> np.ndarray:
    """Return the norms of the DLR loss's gradients, on the host."""
    parts = batches.split(left, size)
    norms = [np.asarray(batches.slopes(given, examples, i))[:used] for i, used in parts]
    return np.concatenate([np.zeros(0), *norms])


def _described(attacks: Sequence[Attack], ball: LpBall) -> str:
    """Describe in words what a call is to do, the same in every process."""
    named = [f"{a.name} ({a.num_runs} × {a.num_steps} steps{_options(a)})" for a in attacks]
    order = "l2" if ball.order == 2 else "linf"
    low, high = ball.bounds
    where = f"in the {order} ball of {float(ball.epsilon)} and the box [{low}, {high}]"
    return f"{', '.join(named)} {where}"


def _options(attack: Attack) -> str:
    """Return the options of an attack's steps besides their number, such as its loss."""
    options = {**getattr(attack.step, "keywords", {})}
    options.pop("num_steps", None)
    return "".join(f", {key}={getattr(o, '__name__', o)}" for key, o in sorted(options.items()))


def _resumed(given: Progress, fresh: Progress, ball: LpBall) -> Progress:
    """Return the earlier progress, or raise if it does not belong to this call."""
    if not isinstance(given, Progress):
        raise TypeError(
            f"resume must be a Progress or an AttackResult, got a {type(given).__name__}"
        )
    if given.call != fresh.call:
        raise ValueError(
            f"resume is the progress of {given.call!r}, expected that of {fresh.call!r}"
        )
    broken_by, tried = np.array(given.broken_by), np.array(given.tried)
    shapes = [(np.shape(p.x), np.shape(p.broken_by)) for p in (given, fresh)]
    if shapes[0] != shapes[1] or not np.array_equal(
        broken_by == MISCLASSIFIED, fresh.broken_by == MISCLASSIFIED
    ):
        raise ValueError(
            "resume must be the progress of a call with the same examples and model, got inputs of "
            f"shape {shapes[0][0]} where those of this call have {shapes[1][0]}, or other "
            "misclassified examples"
        )
    x = replicated(mesh_of(fresh.x), jnp.asarray(given.x, fresh.x.dtype))
    checks.check_points(x, fresh.x, ball)
    return given._replace(x=x, broken_by=broken_by, tried=tried)
