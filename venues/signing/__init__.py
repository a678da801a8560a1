"""Any exchange of ccxt, signed with keys that stay in a token: `exchange.signed_exchange`; `schemes` says which can."""
