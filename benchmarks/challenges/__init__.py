"""The troubles of optimization, made visible; run them with `python -m benchmarks.challenges`.

Two rooms to each trouble: the one here measures and says what it found, the one of the same name
in `slides` draws pictures from what was measured. Below them are `setup` (what all are given and
give back), `walks` (on a landscape) and `lessons` (of a net); above them `__main__`, the command.
"""
