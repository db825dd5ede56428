"""The experiments: data, models, training, evaluation and reports."""
