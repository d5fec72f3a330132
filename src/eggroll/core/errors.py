"""The error of wrong input, the same in every room."""


class UsageError(ValueError):
    """What the user gave cannot be used; one line: what was expected, what was got, how to mend it.

    The command line prints it and exits with status 2; any other exception is a fault of ours.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host, or a device of JAX or PyTorch, had not the memory that was asked for."""
    named = type(error).__name__ == "OutOfMemoryError"  # PyTorch's
    return isinstance(error, MemoryError) or named or "RESOURCE_EXHAUSTED" in str(error)[:400]
