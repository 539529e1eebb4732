"""The commands of `fedray`, a file each: a frozen dataclass; its fields are options, its docstring is the help.

Calling one does it and returns the exit code. Those in `cli.FIELDS` are called with the words that were left over: they
set the fields of an experiment. Importing one imports neither torch, ray nor mlflow.
"""
