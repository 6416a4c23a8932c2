"""OBD (1990), OBS (1993) and layer-wise OBS, on small networks."""
