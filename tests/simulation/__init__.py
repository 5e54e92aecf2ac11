"""The queue's own code under a seeded schedule: one step at a time, each may be the last."""
