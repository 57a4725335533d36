"""What is checked of a bundle on a target: labels, generated tokens, static fitness."""
