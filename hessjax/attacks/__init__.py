"""Attacks on one example: search a ball for the point of largest loss, or for a nearest wrong one.

The loss that an attack finds is a lower bound on the worst loss in the ball; finding nothing proves
nothing. `auto_attack` runs several attacks on many examples.
"""

from hessjax.attacks.apgd import apgd, apgd_attack
from hessjax.attacks.attack import Attack, Outcome
from hessjax.attacks.autoattack import PLUS, STANDARD, AttackResult, Progress, auto_attack
from hessjax.attacks.balls import LpBall, ascent_direction, project, random_point
from hessjax.attacks.fab import fab, fab_attack
from hessjax.attacks.gradient import PGDState, fgsm, pgd, pgd_init, pgd_result, pgd_step
from hessjax.attacks.square import square, square_attack

__all__ = [
    "PLUS",
    "STANDARD",
    "Attack",
    "AttackResult",
    "LpBall",
    "Outcome",
    "PGDState",
    "Progress",
    "apgd",
    "apgd_attack",
    "ascent_direction",
    "auto_attack",
    "fab",
    "fab_attack",
    "fgsm",
    "pgd",
    "pgd_init",
    "pgd_result",
    "pgd_step",
    "project",
    "random_point",
    "square",
    "square_attack",
]
