"""A study of which optimizer to take: `python -m benchmarks.study`.

`protocol` says what is to be run next, `trial` trains one net and `stacked` many at once, `running`
hands them to workers, `store` keeps what comes back. `report` is made from what is kept alone.
"""
