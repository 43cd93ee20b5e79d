"""The client's error."""


class FeaturesError(RuntimeError):
    """The server gave no features, or others than were expected; the message says what to change."""
