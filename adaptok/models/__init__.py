"""One-step models: surrogates, many systems in one, baselines; saving, compiling, schedules."""
