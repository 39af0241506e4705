"""Who comes in, and how much he may ask for.

guard   the first that a request meets
keys    who asks, by keys in a file
oidc    or by tokens that a provider has signed
limits  requests and tokens a minute, and calls at once
admin   what is for admins alone
gate    so many at once for all, and nobody any more when the server ends
"""
