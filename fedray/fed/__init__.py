"""The federation: clients that fit and score, a server that aggregates, rounds that bring them together. No Ray."""
