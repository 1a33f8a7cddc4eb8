"""How the server does: health, metrics, statistics, and what SageMaker asks.

health.py     /health, /health/ready, /health/progress, /version
metrics.py    /metrics, for Prometheus
stats.py      /stats and /load, for the web page and tools
sagemaker.py  /ping and /invocations

meter.py      what is measured of a model, as an observer of its engines
window.py     the last minute of it
histogram.py  counts of values by size
http.py       what is measured of HTTP requests
metric.py     what a metric is
catalog.py    every one of them
collector.py  all of it, as Prometheus reads it
answers.py    what the answers look like
"""
