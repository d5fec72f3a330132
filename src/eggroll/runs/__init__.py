"""What a run leaves behind, and the loop that makes it."""
