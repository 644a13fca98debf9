"""The divergence's Hessian at the outputs, factored: what random cotangents are drawn from."""
