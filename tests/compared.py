"""The options of a small comparison, which is in the folder of tests/conftest.py."""

ARGUMENTS = [
    *("--methods", "none", "gradient:0.5", "--model", "mlp", "--activation", "relu"),
    *("--epochs", "2", "--l2", "0.5", "0.25", "--linf", "0.1", "--num-steps", "4"),
]
