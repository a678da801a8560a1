"""Circuit breakers: alerts and people open them, only a person closes them."""
