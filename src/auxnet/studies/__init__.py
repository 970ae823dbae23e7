"""The paper's experiments, each a small declarative file: trainings that are compared, and what is claimed of them."""
