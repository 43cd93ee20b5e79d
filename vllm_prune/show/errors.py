"""What goes wrong with pictures."""


class ShowError(ValueError):
    """A picture that cannot be made; the message names field, value and remedy."""
