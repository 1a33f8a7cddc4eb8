"""`llm bench serve`: requests to any server that speaks OpenAI's API, and what the clock says of its answers.

texts.py      what is asked: random words, random token ids, or the questions of a dataset
arrivals.py   when: so many at a time, or at random moments of a given rate
client.py     one request over HTTP, and when each piece of its answer came
records.py    from the times of all requests to figures
plot.py       the figures as a picture
"""
