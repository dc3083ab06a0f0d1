"""The way out: which transports a site has, and the connections to them."""
