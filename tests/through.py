"""A smooth map with what the protocol asks for and no more, as users write them."""


class Through:
    """The map ``inner``, asked at what :meth:`at` makes of the points."""

    def __init__(self, inner):
        self.inner, self.latent_dim, self.output_dim = inner, inner.latent_dim, inner.output_dim

    def at(self, z):
        return z

    def __call__(self, z):
        return self.inner(self.at(z))

    def jvp(self, z, v):
        return self.inner.jvp(self.at(z), v)

    def vjp(self, z, u):
        return self.inner.vjp(self.at(z), u)

    def value_and_jacobian(self, z):
        return self.inner.value_and_jacobian(self.at(z))
