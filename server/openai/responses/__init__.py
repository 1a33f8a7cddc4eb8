"""POST /v1/responses and what can be done with what it made.

routes.py   the HTTP routes
bodies.py   what a request may hold, and the items of a conversation
writing.py  a response while it is written, and as clients see it
events.py   the same as a stream of typed events
kept.py     responses that can be asked for again; those that are written in the background
store.py    where they are kept: in memory
sqlite.py   or in a file
"""
