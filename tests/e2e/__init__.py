"""End-to-end tests: the command line, bad input, processes that are killed."""
