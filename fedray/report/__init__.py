"""Figures and tables, made from run folders alone: nothing here computes a result or asks a server."""
