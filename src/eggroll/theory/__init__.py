"""The paper's guarantees as figures that anyone can draw, each with the numbers that bear it out."""
