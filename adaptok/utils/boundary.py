"""The Well's codes for what happens at an end of an axis."""

WALL, OPEN, PERIODIC = 0, 1, 2
BOUNDARIES = ("WALL", "OPEN", "PERIODIC")  # names in the files, in the order of the codes
