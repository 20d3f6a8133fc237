"""A local CoinGecko: the same HTTP API over an invented market, with faults on demand.

Belongs here: the market (`market`, `catalogue`), what the provider's history endpoint makes of it
(`charts`), the answers and their shapes (`answers`), plan limits and the count of calls
(`limits`, `clock`), faults (`faults`, `mutations`, `delivery`) and the server (`app`, `server`).
Does not: anything that knows how PulseGuard reads these answers. The simulator must be able to
disagree with the client, so it imports nothing of `coingecko/` or `warehouse/`.
"""
