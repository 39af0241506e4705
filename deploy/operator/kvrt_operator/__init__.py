"""A Kubernetes operator for `Model` resources: models that `kvrt serve` serves.

    spec        what a resource asks for, read and checked         -> Spec
    observed    what was seen of the cluster                       -> Observed
    claims      which replica has which part of which device       -> Claims
    placement   where a replica fits, and why nowhere
    scaling     how many replicas, by how many requests wait
    manifests   Deployments, Services, PodDisruptionBudgets
    reconciler  all of these: desired(spec, observed) -> actions
    api         HTTP to the API server, and to Pods' metrics
    handlers    kopf: looks, asks the reconciler, acts

Everything above `api` is a pure function of values, and imports nothing but the standard library.
"""
