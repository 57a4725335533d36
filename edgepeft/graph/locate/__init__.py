"""Finding the initializer that holds a parameter, by its content."""
