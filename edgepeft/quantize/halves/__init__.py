"""Half precision: weights and arithmetic in float16, with those nodes left in float32 whose numbers float16 cannot hold."""
