"""How a model is called: its arguments in order, and the form of call that suits all data."""
