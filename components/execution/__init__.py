"""Execution: carries permits out at the exchange and follows each order to its end."""
