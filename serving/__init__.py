"""Discrete-event simulation of request streams: schedulers, paged KV caches, clusters, power."""
