"""kvrt in other people's stacks. Nothing here is imported by kvrt itself; servers and routers do.

choosing   which of several replicas is to answer: for `kvrt route`, and on a Ray cluster
prefixes   what each of them has cached, as far as others know
"""
