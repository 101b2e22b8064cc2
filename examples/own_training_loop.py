"""A training loop of your own: your network and data; our mixing, attack, loss and evaluation.

PGD adversarial training on scikit-learn's digits with same-class mixup. No config, no command
line, no workdir; half a minute on two cores:

    python examples/own_training_loop.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fairmix_jax import Batch, ThreatModel, Weights, classwise, initial_state, make_train_step, tune
from fairmix_jax.methods import mixing
from fairmix_jax.methods.averaging import ema
from fairmix_jax.methods.bases import pgd_at
from fairmix_jax.methods.training_attack import TrainingAttack
from fairmix_jax.models.described import from_linen, logits_partial

EPOCHS, BATCH_SIZE = 20, 128


class Network(nn.Module):
    """Your network; nothing in it knows of us."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


tune()  # faster convolutions on CPU; before the first computation
images, labels = load_digits(return_X_y=True)
images, labels = (images / 16).reshape(-1, 8, 8, 1).astype("float32"), labels.astype("int32")
x_train, x_test, y_train, y_test = train_test_split(images, labels, stratify=labels, random_state=0)
x_train, y_train = jnp.asarray(x_train), jnp.asarray(y_train)
init_key, order_key, step_key = jax.random.split(jax.random.key(0), 3)

# A defence is a base loss with its attack, a rule, a mixing and an averaging of weights. All but
# the base may be left out, as the rule is here.
model = from_linen(Network(), (8, 8, 1))
threat = ThreatModel("linf", epsilon=0.2)  # in pixel units
base = pgd_at.make(model.apply, TrainingAttack(threat, num_steps=10, step_size=0.05))
mix = mixing.make("same_class", num_classes=10, num_samples=2)
averaging, tx = ema.make(decay=0.95), optax.adam(2e-3)
train_step = make_train_step(base=base, tx=tx, mixing=mix, averaging=averaging, num_classes=10)
train_step = jax.jit(train_step, donate_argnums=0)

state = initial_state(Weights(*model.init(init_key)), tx=tx, averaging=averaging)
mask = jnp.ones(BATCH_SIZE, bool)  # no example of a batch is padding
for epoch in range(EPOCHS):
    order = jax.random.permutation(jax.random.fold_in(order_key, epoch), len(y_train))
    for rows in order[: len(order) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE):
        batch = Batch(x_train[rows], y_train[rows], rows, mask)
        state, measured = train_step(state, batch, step_key)
    correct = measured.statistics.counts.correct.sum() / BATCH_SIZE
    print(f"epoch {epoch + 1}: accuracy under attack {correct:.0%} in the last batch")

weights = averaging.weights(state.average, Weights(state.params, state.batch_stats))
logits_fn = logits_partial(model.apply, weights)  # the network of images alone
found = classwise.evaluate(logits_fn, x_test, y_test, class_names="0123456789", threat=threat)
print("correct under attack, by class:", found["attacks"]["pgd20"]["class_correct"])
