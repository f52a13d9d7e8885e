"""The planner's golden texts: a node and a blueprint in, the whole plan out."""
