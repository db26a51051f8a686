"""From simulation to data: simplex coordinates, densities, maps, composition."""
