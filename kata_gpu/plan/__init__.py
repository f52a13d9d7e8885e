"""Blueprint and inventory in, plan out: pure functions that touch nothing."""
