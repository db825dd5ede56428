"""Attacks on one example: where the loss is largest in a ball, found by search.

What an attack finds is a lower bound of the worst loss in the ball; finding nothing proves nothing.
"""

from hessjax.attacks.balls import LpBall, ascent_direction, project, random_point
from hessjax.attacks.gradient import AttackState, fgsm, pgd, pgd_init, pgd_result, pgd_step

__all__ = [
    "AttackState",
    "LpBall",
    "ascent_direction",
    "fgsm",
    "pgd",
    "pgd_init",
    "pgd_result",
    "pgd_step",
    "project",
    "random_point",
]
