"""The reservations: Redis, which holds who has what until when, and may be lost at any time."""
