"""The risk engine: what is limited and what must be fresh, decided here and nowhere else in the gateway.

- `controls`: what is checked, in which order, and how a control is added.
- `facts`: everything that one decision rests on.
- `limits`: the numbers of each strategy, from `[limits]`.  What a denial means: `schemas.codes.gateway`.
- `exposure`, `markets`, `throttle`: the state that facts are taken from; `valuation`: what an order would make of it.
- `amounts`: what prices and quantities are worth.

House rules (who may trade what) are no limits: `policy` asks Cedar for them.
"""
