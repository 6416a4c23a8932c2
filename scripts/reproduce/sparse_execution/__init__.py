"""Block-sparse networks beside dense ones of equal cost."""
