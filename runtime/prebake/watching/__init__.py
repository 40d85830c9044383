"""A service seen from outside: its processes, what tells that it is ready, the requests that it gets, and its end.

`prebake check -- COMMAND`, `prebake scan` and `prebake measure` start services of any make with these modules. Nothing
here is imported by a service.
"""
