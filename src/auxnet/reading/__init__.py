"""Data as it lies on disk: where it is found, how each form is read, and what is too large for memory."""
