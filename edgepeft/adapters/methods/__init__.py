"""Closed forms of PEFT's methods in the five edits, without torch. Each names the PEFT 0.21 file that it repeats."""
