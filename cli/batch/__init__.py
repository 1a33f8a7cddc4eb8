"""`llm run-batch`: OpenAI's batch files, answered by the server's own app without a socket.

requests.py   the lines of the input
journal.py    the output, which is also what a run that was killed goes on from
calls.py      one request to an ASGI app in this process
running.py    many requests at once, each answer written as soon as it is there
"""
