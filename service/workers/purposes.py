"""What random numbers are for: the third word of every counter (design: one seed, one output)."""

TOKEN_DRAW = 1
INITIAL_NOISE = 2
STEP_NOISE = 3
