"""Jobs of gangs, as the compute worker runs them; in a package of their own, since they load torch."""
