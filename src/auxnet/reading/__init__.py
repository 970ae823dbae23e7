"""Data on disk: where they are found, how each form is read, and what is too large for memory."""
