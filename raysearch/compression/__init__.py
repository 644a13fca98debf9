"""A model and a configuration in, a controller out; NNCF's configuration is read here."""
