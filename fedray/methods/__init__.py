"""One paper, one file: file name = function name = name in tables. Importing a file is all the registration."""
