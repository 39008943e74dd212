"""Models: loading, precision, the reference, and the tiny base that the package ships."""
