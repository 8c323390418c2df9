"""Where this package meets NNI."""
