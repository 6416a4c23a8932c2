"""Tables, figures, notebooks and generated pages of the documentation."""
