"""A network of so few inputs that its Hessians may be dense, and a batch for it."""

from functools import partial

import numpy as np

from experiments import models

_NARROW = partial(models.create, "mlp", "gelu", input_shape=(4, 4, 1), num_classes=3, widths=(6,))
APPLY, PARAMS = models.functional(_NARROW(seed=0))
X = np.random.default_rng(0).uniform(size=(6, 4, 4, 1)).astype(np.float32)
Y = np.arange(6) % 3
