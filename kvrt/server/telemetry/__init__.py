"""What a server tells of itself.

status   how it does right now, for its page
metrics  the same for Prometheus
compat   metrics under the names of others
tracing  a span for each request
audit    who asked what route when, and never what
"""
