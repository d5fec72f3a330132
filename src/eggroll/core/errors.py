"""The error of wrong input, the same in every room."""


class UsageError(ValueError):
    """What the user gave cannot be used; one line: what was expected, what was got, how to mend it.

    The command line prints it and exits with status 2; any other exception is a fault of ours.
    """
