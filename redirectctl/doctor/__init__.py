"""The checks of `redirectctl doctor`: each finds out one thing and says what a person can do about it."""
