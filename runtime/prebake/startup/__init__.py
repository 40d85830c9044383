"""What a process need not do at start, and what it need not wait for.

`deferred` puts off imports that inference does not use, `memo` keeps what transformers computes from its own files,
`recorder` and `readahead` have a cold start's files read before they are needed. `quickstart.begin()` turns all of
them on.
"""
