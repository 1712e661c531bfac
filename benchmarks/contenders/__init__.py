"""One module per contender, and what it needs in `<name>.txt`; `benchmarks/contender.py` is their contract."""
