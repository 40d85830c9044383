"""Where a start's time and memory went, as data, text, drawing and verdict.

`timeline` records spans and marks from the birth of the process; `report` and `drawing` show them; `budget` compares
them with limits; `status` is the state of one model; `probe` asks a running service.
"""
