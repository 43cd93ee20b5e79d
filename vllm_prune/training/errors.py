"""What stops a training that cannot go on."""


class TrainingError(ValueError):
    """Data, model or options that cannot be used; the message says what to change."""
