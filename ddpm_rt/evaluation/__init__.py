"""Quality of a model's samples: a judge trained on real digits, and distances between sets of features."""
