"""Many models in one process: each loaded once, lazily or all at once, however many threads ask.

`models` holds the flights, the retries, the timeouts and the state of each model; `prefetch` reads mapped weights
into the page cache once nothing loads.
"""
