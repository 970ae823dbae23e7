"""Many trainings of one recipe: spaces, trials that any number of workers draw, the outcome as pictures."""
