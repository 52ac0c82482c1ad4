"""A study of which optimizer to choose: `python -m benchmarks.study`.

`protocol` says what is run next, `trial` trains one net and `stacked` many at once, `running` hands
trials to workers, `store` keeps the results, `analysis` (with `statistics`) evaluates them and
`report` presents them.
"""
