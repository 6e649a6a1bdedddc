"""The command line: it parses arguments, calls a function of the package and prints what it returns."""
