"""Ma, Bassily and Belkin (2018): SGD in the interpolated regime."""
