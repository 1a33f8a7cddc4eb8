"""What stands in front of every route, those that do not exist included.

    connection.py  bytes that are no HTTP, headers that are too long, clients that do not go on
    order.py       who stands where
    ends.py        how each request ended, for those who want to know
    access_log.py  a line for each request
    labels.py      every request has an id, and every failure is answered
    hosts.py       names that this server answers to
    origins.py     web pages that may call it
    keys.py        who may ask
    limits.py      how much may be sent

All of it is plain ASGI, but for the connection, which is uvicorn's.
"""
