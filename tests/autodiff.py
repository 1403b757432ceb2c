"""Gradients by the backend's automatic differentiation."""

from support.backend import keras, ops


def gradients(function, variables, inputs=()):
    """Of a scalar function, for the variables that it uses and its arguments."""
    inputs = [ops.convert_to_tensor(x) for x in inputs]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(*inputs)
        return tape.gradient(value, [v.value for v in variables] + inputs)
    import jax

    def stateless(values, inputs):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(*inputs)

    values = [v.value for v in variables]
    return [x for part in jax.grad(stateless, (0, 1))(values, inputs) for x in part]
